#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/batch/reader.h"

namespace muster::batch {

// How every global batch is divided: into so many microbatches (0: one per rank), which `ranks` ranks share.
struct Division {
  int64_t microbatches = 0;
  int rank = 0;  // the rank that asks
  int ranks = 1;
};

// A run of rows of a global batch.
struct Rows {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t microbatch = 0;  // number of the first microbatch in it
  int64_t size() const { return end - begin; }
};

// A global batch: an ordered list of samples, what every rank knows of all of them without communicating, and who
// computes which of them. The samples are cut into contiguous microbatches as equal as possible; each rank owns a
// contiguous run of microbatches. All but `own` and `own_microbatches` is the same on every rank.
struct GlobalBatch {
  std::vector<int64_t> samples;
  at::Tensor labels;    // as BatchReader::labels(), of all N; undefined when the data has none
  at::Tensor presence;  // [N, modalities] bool, on the CPU

  std::vector<int64_t> row_counts;     // per rank
  std::vector<int64_t> filled_counts;  // per rank, how many of its microbatches are not empty
  Rows own;                            // of this rank
  std::vector<Rows> own_microbatches;  // those that are not empty

  int64_t size() const { return static_cast<int64_t>(samples.size()); }
};

// Who computes which rows, without labels and presence. More microbatches than samples leave the last ones empty.
GlobalBatch divide(std::vector<int64_t> samples, const Division& division);

// Rank r owns the microbatches [boundaries[r], boundaries[r + 1]) of every global batch.
std::vector<int64_t> microbatch_boundaries(const Division& division);

// The whole description; without labels where the data has none or with_labels is false.
GlobalBatch make_global_batch(const BatchReader& reader, std::vector<int64_t> samples, const Division& division,
                              bool with_labels = true);

// Where the rows stand in the global batch: what their random numbers are keyed by.
std::vector<int64_t> positions_of(const Rows& rows);
std::vector<int64_t> samples_of(const GlobalBatch& global, const Rows& rows);

// A global batch whose frames this rank has read as far as they are its own: what a step computes with.
struct LoadedBatch {
  uint64_t number = 0;  // of the step, or of the batch within an evaluation; from 0
  int64_t epoch = 0;    // from 1; 0 in an evaluation
  GlobalBatch global;
  std::vector<Batch> microbatches;  // one per own_microbatches
};

// Reads this rank's microbatches now. `with_labels` as make_global_batch.
LoadedBatch read_batch(const BatchReader& reader, std::vector<int64_t> samples, const Division& division,
                       uint64_t number = 0, bool with_labels = true);

}  // namespace muster::batch
