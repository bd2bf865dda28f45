#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/batch/ragged.h"
#include "core/batch/resident.h"
#include "core/batch/standardizer.h"
#include "core/data/dataset.h"

namespace muster::batch {

// Which rows of a sample count.
struct RowLimits {
  int64_t most = 0;   // the first so many; 0: all
  int64_t least = 1;  // a sample with fewer counts as one without the modality

  int64_t of(int64_t rows) const {
    const int64_t taken = most > 0 ? std::min(rows, most) : rows;
    return taken < least ? 0 : taken;
  }
};

// Makes batches of tensors from a dataset: reads only the frames asked for, standardizes features, converts to the
// compute dtype, ids of tokens to int64. Batches and frames are on `device`, everything else on the CPU. On a GPU,
// frames are uploaded as float32 from page-locked memory and made ready there, on the current stream, without making
// the host wait. Const functions may be called from several threads.
class BatchReader {
 public:
  // `modalities`: positions in dataset.index().modalities, in the experiment's order. `moments`: one per modality, or
  // empty for no standardization; nor is a modality standardized whose moments have no elements (those of waveforms and
  // tokens, and of features that an encoder has made). It is computed in double precision and then rounded to `dtype`,
  // float32 or float64; in_float32: as data.standardize_in_float32 says. `limits`: one per modality, or empty for none.
  // clip_standardized: as in data; 0: none. The dataset must outlive the reader.
  BatchReader(const data::Dataset& dataset, std::vector<int64_t> modalities, std::vector<FeatureMoments> moments,
              at::ScalarType dtype, c10::Device device = c10::kCPU, bool in_float32 = false,
              std::vector<RowLimits> limits = {}, double clip_standardized = 0);

  // On a GPU, reads all frames into its memory if `wanted` says so and they fit; batches are then gathered there, equal
  // bit for bit. `ranks`: how many ranks share the GPU and do the same. Returns whether they are there; on the CPU
  // always false. Throws Error(kBadConfig) when ALWAYS cannot be.
  bool keep_on_device(Residency wanted, int ranks = 1);

  // Samples in the order given; labels are included when the dataset has them. presence: which of their modalities
  // count, [samples, modalities] bool, on the CPU, contiguous; undefined: all that there are.
  Batch read(const std::vector<int64_t>& samples, const std::vector<int64_t>& batch_index,
             const at::Tensor& presence = {}) const;

  // One modality alone (position in the experiment's list).
  Ragged read_modality(int64_t position, const std::vector<int64_t>& samples, const at::Tensor& presence = {}) const;

  // Labels of any samples, without touching frames; on the CPU: [samples], or [samples, classes] of multi-label data,
  // in the compute dtype; classes int64.
  at::Tensor labels(const std::vector<int64_t>& samples) const;

  // [samples, modalities] bool, on the CPU: which modalities are present.
  at::Tensor presence(const std::vector<int64_t>& samples) const;

  at::ScalarType dtype() const { return dtype_; }
  c10::Device device() const { return device_; }
  const data::Dataset& dataset() const { return dataset_; }
  int64_t dim(int64_t position) const { return modality(position).dim; }
  data::ModalityKind kind(int64_t position) const { return modality(position).kind; }
  // Rows of a sample that read_modality() gives.
  int64_t length(int64_t position, int64_t sample) const;

 private:
  const data::Modality& modality(int64_t position) const { return dataset_.index().modalities[modalities_[position]]; }
  // What the values of its batches are.
  at::ScalarType dtype_of(int64_t position) const {
    return kind(position) == data::ModalityKind::kTokens ? at::kLong : dtype_;
  }
  at::Tensor host_frames(int64_t rows, int64_t dim) const;
  at::Tensor ready(const at::Tensor& host, int64_t position) const;
  at::Tensor standardized(const at::Tensor& values, const FeatureMoments& moments, int64_t position) const;

  const data::Dataset& dataset_;
  std::vector<int64_t> modalities_;
  std::vector<FeatureMoments> moments_;  // on the device; in_float32_: rounded to the compute dtype, and ...
  std::vector<at::Tensor> inverses_;     // ... 1 / standard deviation
  bool in_float32_;
  at::ScalarType dtype_;
  c10::Device device_;
  std::vector<RowLimits> limits_;
  double clip_standardized_;
  std::shared_ptr<const ResidentFrames> resident_;
};

}  // namespace muster::batch
