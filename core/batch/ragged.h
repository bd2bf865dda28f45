#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace muster::batch {

// Sequences of different lengths, one after another, without padding. Rows of sample i: [offsets[i], offsets[i+1]).
struct Ragged {
  at::Tensor values;             // [rows, dim] in the compute dtype; of tokens int64
  std::vector<int64_t> offsets;  // samples + 1, offsets[0] == 0, offsets.back() == rows

  int64_t samples() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t rows() const { return offsets.back(); }
  int64_t length(int64_t sample) const { return offsets[sample + 1] - offsets[sample]; }
};

// A microbatch, or any other run of samples. modalities are in the order of the experiment's modality list.
struct Batch {
  std::vector<int64_t> samples;      // dataset rows
  std::vector<int64_t> batch_index;  // place of each sample in the global batch: what random numbers are keyed by
  std::vector<Ragged> modalities;    // an empty range: the modality is missing for that sample
  at::Tensor labels;                 // as BatchReader::labels(); undefined where there are none

  int64_t size() const { return static_cast<int64_t>(samples.size()); }
};

// Splits `total` things into `parts` contiguous runs whose sizes differ by at most one, larger ones first; returns the
// parts + 1 boundaries. More parts than things leaves the last ones empty.
inline std::vector<int64_t> even_boundaries(int64_t total, int64_t parts) {
  std::vector<int64_t> boundaries(parts + 1, 0);
  for (int64_t p = 0; p < parts; ++p) boundaries[p + 1] = boundaries[p] + total / parts + (p < total % parts ? 1 : 0);
  return boundaries;
}

}  // namespace muster::batch
