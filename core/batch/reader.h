#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/batch/ragged.h"
#include "core/batch/standardizer.h"
#include "core/data/dataset.h"

namespace muster::batch {

// Makes batches of tensors from a dataset: reads only the frames asked for, standardizes, converts to the compute dtype.
class BatchReader {
 public:
  // `modalities`: positions in dataset.index().modalities, in the experiment's order. `moments`: one per modality, or empty
  // for no standardization. `dtype`: float32 or float64. The dataset must outlive the reader.
  BatchReader(const data::Dataset& dataset, std::vector<int64_t> modalities, std::vector<FeatureMoments> moments,
              at::ScalarType dtype);

  // Samples in the order given; labels are included when the dataset has them.
  Batch read(const std::vector<int64_t>& samples, const std::vector<int64_t>& global_rows) const;

  // One modality alone (position in the experiment's list).
  Ragged read_modality(int64_t position, const std::vector<int64_t>& samples) const;

  // Labels of any samples, without touching frames.
  at::Tensor labels(const std::vector<int64_t>& samples) const;

  // [samples, modalities] bool: which modalities are present.
  at::Tensor presence(const std::vector<int64_t>& samples) const;

  at::ScalarType dtype() const { return dtype_; }
  const data::Dataset& dataset() const { return dataset_; }
  int64_t dim(int64_t position) const { return dataset_.index().modalities[modalities_[position]].dim; }

 private:
  const data::Dataset& dataset_;
  std::vector<int64_t> modalities_;
  std::vector<at::Tensor> means_;    // compute dtype [dim]
  std::vector<at::Tensor> inverses_; // 1 / standard deviation
  at::ScalarType dtype_;
};

}  // namespace muster::batch
