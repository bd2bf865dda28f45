#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace muster {

// A dataset of one modality per entry of `values`, whose samples have the given numbers of frames.
class TensorDataset final : public data::Dataset {
 public:
  // values[m]: float32 [frames, dim]; lengths[m]: frames per sample.
  // kinds: of all modalities, or empty for features.
  TensorDataset(std::vector<at::Tensor> values, const std::vector<std::vector<int64_t>>& lengths,
                const std::vector<data::ModalityKind>& kinds = {})
      : values_(std::move(values)) {
    for (size_t m = 0; m < values_.size(); ++m) {
      data::Modality modality;
      modality.name = "m" + std::to_string(m);
      modality.dim = values_[m].size(1);
      if (!kinds.empty()) modality.kind = kinds[m];
      modality.offsets.push_back(0);
      for (const int64_t length : lengths[m]) modality.offsets.push_back(modality.offsets.back() + length);
      index_.modalities.push_back(modality);
    }
    for (size_t i = 0; i < lengths[0].size(); ++i) {
      index_.ids.push_back("s" + std::to_string(i));
      index_.labels.push_back(0.5 * static_cast<double>(i));
    }
  }
  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    const at::Tensor& values = values_[modality];
    std::copy_n(values.const_data_ptr<float>() + first * values.size(1), count * values.size(1), out);
  }
  std::string content_hash() const override { return "memory"; }
  std::string source() const override { return "memory"; }

 private:
  std::vector<at::Tensor> values_;
};

}  // namespace muster
