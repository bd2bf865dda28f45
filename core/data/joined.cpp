#include "core/data/joined.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/sha256.h"
#include "base/text.h"

namespace muster::data {

JoinedDataset::JoinedDataset(std::shared_ptr<const Dataset> base, std::shared_ptr<const Dataset> frames)
    : base_(std::move(base)), frames_(std::move(frames)), position_(base_->index().modalities.size(), -1) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ExitCode::kBadData, fmt::format("{}: {}", frames_->source(), what));
  };
  if (frames_->index().ids != base_->index().ids)
    refuse(fmt::format("its samples are not those of {}", base_->source()));
  index_ = base_->index();
  for (size_t i = 0; i < frames_->index().modalities.size(); ++i) {
    const Modality& modality = frames_->index().modalities[i];
    const int64_t place = index_.find_modality(modality.name);
    if (place < 0)
      refuse(fmt::format("holds frames of {}, which {} does not have", in_quotes(modality.name), base_->source()));
    index_.modalities[place] = modality;
    position_[place] = static_cast<int64_t>(i);
  }
}

void JoinedDataset::read_frames(int64_t modality, int64_t first, int64_t count, float* out) const {
  const int64_t position = position_.at(modality);
  position < 0 ? base_->read_frames(modality, first, count, out) : frames_->read_frames(position, first, count, out);
}

std::string JoinedDataset::content_hash() const {
  return sha256_of(base_->content_hash() + " " + frames_->content_hash());
}

}  // namespace muster::data
