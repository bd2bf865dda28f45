#include "core/batch/modality_dropout.h"

#include <algorithm>

#include "core/random/philox.h"

namespace muster::batch {

ModalityDropout::ModalityDropout(const config::Experiment& experiment, const std::vector<std::string>& modalities)
    : probability_(experiment.data().augment().modality_dropout()), seed_(experiment.seed()) {
  const auto& chosen = experiment.data().augment().modalities();
  for (const std::string& name : modalities)
    is_chosen_.push_back(chosen.empty() || std::find(chosen.begin(), chosen.end(), name) != chosen.end());
}

at::Tensor ModalityDropout::left_of(const at::Tensor& presence, uint64_t step) const {
  if (probability_ == 0) return presence;
  at::Tensor left = presence.clone();
  const size_t modalities = is_chosen_.size();
  bool* row = left.mutable_data_ptr<bool>();
  const bool* had = presence.const_data_ptr<bool>();
  for (int64_t n = 0; n < presence.size(0); ++n, row += modalities, had += modalities) {
    for (size_t m = 0; m < modalities; ++m) {
      if (!is_chosen_[m]) continue;
      const auto words = random::philox4x32(seed_, {static_cast<uint32_t>(m), static_cast<uint32_t>(n),
                                                    random::kModalityDropout, static_cast<uint32_t>(step)});
      if (random::uniform(words[0]) < probability_) row[m] = false;
    }
    if (std::find(row, row + modalities, true) == row + modalities) std::copy_n(had, modalities, row);
  }
  return left;
}

}  // namespace muster::batch
