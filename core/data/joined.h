#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace muster::data {

// The samples of one dataset, with the frames of some of its modalities taken from another one of the same samples.
class JoinedDataset final : public Dataset {
 public:
  // Every modality of `frames` takes the place of the one of that name in `base`. Throws Error(kBadData) that names
  // the source of `frames` when the samples of the two differ, or `base` has no such modality.
  JoinedDataset(std::shared_ptr<const Dataset> base, std::shared_ptr<const Dataset> frames);

  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override;
  // Of both.
  std::string content_hash() const override;
  // That of `base`.
  std::string source() const override { return base_->source(); }

 private:
  std::shared_ptr<const Dataset> base_, frames_;
  std::vector<int64_t> position_;  // of each modality in frames_; -1: it is that of base_
};

}  // namespace muster::data
