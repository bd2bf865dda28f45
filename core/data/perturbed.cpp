#include "core/data/perturbed.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/crc32c.h"
#include "base/sha256.h"
#include "core/random/philox.h"

namespace muster::data {

PerturbedDataset::PerturbedDataset(std::shared_ptr<const Dataset> base, Perturbation perturbation)
    : base_(std::move(base)), perturbation_(std::move(perturbation)) {
  index_ = base_->index();
  Modality& modality = index_.modalities.at(static_cast<size_t>(perturbation_.modality));
  name_key_ = crc32c(modality.name);
  if (perturbation_.drop <= 0) return;
  const std::vector<int64_t>& stored = base_->index().modalities[static_cast<size_t>(perturbation_.modality)].offsets;
  for (int64_t sample = 0; sample < index_.size(); ++sample) {
    const auto words =
        random::philox4x32(perturbation_.seed, {0, name_key_, random::kPerturbedDrop, static_cast<uint32_t>(sample)});
    const bool dropped = random::uniform(words[0]) < perturbation_.drop;
    modality.offsets[sample + 1] = modality.offsets[sample] + (dropped ? 0 : stored[sample + 1] - stored[sample]);
  }
}

void PerturbedDataset::read_frames(int64_t modality, int64_t first, int64_t count, float* out) const {
  if (modality != perturbation_.modality) return base_->read_frames(modality, first, count, out);
  const Modality& info = index_.modalities[static_cast<size_t>(modality)];
  const std::vector<int64_t>& offsets = info.offsets;
  const std::vector<int64_t>& stored = base_->index().modalities[static_cast<size_t>(modality)].offsets;
  // The last sample that begins at `first` or before has that row; others that begin there have no rows.
  int64_t sample = std::upper_bound(offsets.begin(), offsets.end(), first) - offsets.begin() - 1;
  for (const int64_t end = first + count; first < end; ++sample) {
    const int64_t row = first - offsets[sample], rows = std::min(end, offsets[sample + 1]) - first;
    if (rows <= 0) continue;
    base_->read_frames(modality, stored[sample] + row, rows, out);
    if (perturbation_.noise > 0) add_noise(sample, row, rows, out);
    first += rows;
    out += rows * info.dim;
  }
}

void PerturbedDataset::add_noise(int64_t sample, int64_t row, int64_t rows, float* values) const {
  const int64_t dim = index_.modalities[static_cast<size_t>(perturbation_.modality)].dim;
  std::vector<double> deviations = perturbation_.scales;
  if (deviations.empty()) deviations.assign(static_cast<size_t>(dim), rms_of(sample));
  for (double& deviation : deviations) deviation *= perturbation_.noise;
  // Elements of a sample are numbered row by row; a counter gives four of them.
  const int64_t begin = row * dim, end = begin + rows * dim;
  for (int64_t block = begin / 4; 4 * block < end; ++block) {
    const auto words = random::philox4x32(perturbation_.seed, {static_cast<uint32_t>(block), name_key_,
                                                               random::kPerturbedNoise, static_cast<uint32_t>(sample)});
    const auto early = random::normal_pair(words[0], words[1]), late = random::normal_pair(words[2], words[3]);
    const double normals[] = {early[0], early[1], late[0], late[1]};
    for (int64_t element = std::max(begin, 4 * block); element < std::min(end, 4 * block + 4); ++element) {
      float& value = values[element - begin];
      value = static_cast<float>(value + deviations[static_cast<size_t>(element % dim)] * normals[element % 4]);
    }
  }
}

double PerturbedDataset::rms_of(int64_t sample) const {
  const Modality& stored = base_->index().modalities[static_cast<size_t>(perturbation_.modality)];
  std::vector<float> values(static_cast<size_t>(stored.length(sample) * stored.dim));
  base_->read_frames(perturbation_.modality, stored.offsets[sample], stored.length(sample), values.data());
  double squares = 0;
  for (const float value : values) squares += static_cast<double>(value) * value;
  return values.empty() ? 0 : std::sqrt(squares / static_cast<double>(values.size()));
}

std::string PerturbedDataset::content_hash() const {
  return sha256_of(fmt::format("{} modality={} drop={:.17g} noise={:.17g} scales={:.17g} seed={}",
                               base_->content_hash(), perturbation_.modality, perturbation_.drop, perturbation_.noise,
                               fmt::join(perturbation_.scales, ","), perturbation_.seed));
}

}  // namespace muster::data
