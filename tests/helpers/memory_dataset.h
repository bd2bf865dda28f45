#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace muster {

// A dataset made by hand: classification, one modality of width 2 per name, `lengths[i]` frames for sample i, values
// counting up.
class MemoryDataset : public data::Dataset {
 public:
  MemoryDataset(const std::vector<std::string>& modalities, const std::vector<int64_t>& lengths) {
    index_.name = "memory";
    index_.task = data::Task::kClassification;
    index_.class_names = {"no", "yes"};
    for (size_t i = 0; i < lengths.size(); ++i) {
      index_.ids.push_back("s" + std::to_string(i));
      index_.groups.push_back("g" + std::to_string(i % 3));
      index_.splits.push_back(i % 2 ? "test" : "train");
      index_.labels.push_back(static_cast<double>(i % 2));
    }
    for (const std::string& name : modalities) {
      data::Modality modality;
      modality.name = name;
      modality.dim = 2;
      modality.offsets.push_back(0);
      for (const int64_t length : lengths) modality.offsets.push_back(modality.offsets.back() + length);
      values.emplace_back(static_cast<size_t>(modality.offsets.back() * 2));
      for (size_t i = 0; i < values.back().size(); ++i) values.back()[i] = static_cast<float>(i) + 0.5f;
      index_.modalities.push_back(modality);
    }
  }
  data::DatasetIndex& index() { return index_; }
  using data::Dataset::index;

  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    std::copy_n(values[modality].data() + first * 2, count * 2, out);
  }
  std::string content_hash() const override { return "memory"; }
  std::string source() const override { return "memory"; }

  std::vector<std::vector<float>> values;
};

}  // namespace muster
