#include "core/data/perturbed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/helpers/memory_dataset.h"

namespace muster::data {
namespace {

std::vector<float> rows_of(const Dataset& data, int64_t modality, int64_t first, int64_t count) {
  std::vector<float> out(static_cast<size_t>(count * data.index().modalities[static_cast<size_t>(modality)].dim));
  data.read_frames(modality, first, count, out.data());
  return out;
}

std::vector<float> all_rows_of(const Dataset& data, int64_t modality) {
  return rows_of(data, modality, 0, data.index().modalities[static_cast<size_t>(modality)].offsets.back());
}

std::vector<float> sample_of(const Dataset& data, int64_t modality, int64_t sample) {
  const Modality& info = data.index().modalities[static_cast<size_t>(modality)];
  return rows_of(data, modality, info.offsets[static_cast<size_t>(sample)], info.length(sample));
}

// 40 samples of 0 to 4 frames.
std::shared_ptr<MemoryDataset> memory() {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 40; ++i) lengths.push_back((i * 7) % 5);
  return std::make_shared<MemoryDataset>(std::vector<std::string>{"audio", "vision"}, lengths);
}

Perturbation drop(double share, uint64_t seed = 1) {
  Perturbation perturbation;
  perturbation.drop = share;
  perturbation.seed = seed;
  return perturbation;
}

Perturbation noise(double rate, std::vector<double> scales, uint64_t seed = 1) {
  Perturbation perturbation;
  perturbation.noise = rate;
  perturbation.scales = std::move(scales);
  perturbation.seed = seed;
  return perturbation;
}

std::vector<bool> dropped(const Dataset& base, const Dataset& perturbed) {
  std::vector<bool> lost;
  for (int64_t i = 0; i < base.index().size(); ++i)
    lost.push_back(base.index().modalities[0].length(i) > 0 && perturbed.index().modalities[0].length(i) == 0);
  return lost;
}

TEST(PerturbedDataset, AtRateZeroIsTheDataset) {
  const auto base = memory();
  for (const Perturbation& perturbation : {drop(0), noise(0, {1, 1})}) {
    const PerturbedDataset same(base, perturbation);
    EXPECT_EQ(same.index().modalities[0].offsets, base->index().modalities[0].offsets);
    EXPECT_EQ(all_rows_of(same, 0), all_rows_of(*base, 0));
  }
}

TEST(PerturbedDataset, DropsWholeSamplesOfOneModality) {
  const auto base = memory();
  const PerturbedDataset half(base, drop(0.5));
  EXPECT_EQ(half.index().ids, base->index().ids);
  EXPECT_EQ(half.index().modalities[1].offsets, base->index().modalities[1].offsets);
  EXPECT_EQ(all_rows_of(half, 1), all_rows_of(*base, 1));
  std::vector<float> kept;
  for (int64_t i = 0; i < base->index().size(); ++i) {
    const auto frames = sample_of(half, 0, i);
    EXPECT_TRUE(frames.empty() || frames == sample_of(*base, 0, i)) << i;
    kept.insert(kept.end(), frames.begin(), frames.end());
  }
  // Ranges across samples, as whole tables are read.
  EXPECT_EQ(all_rows_of(half, 0), kept);
  const int64_t rows = half.index().modalities[0].offsets.back();
  for (int64_t first = 0; first < rows; ++first)
    for (int64_t count = 1; first + count <= rows; count += 3)
      EXPECT_EQ(rows_of(half, 0, first, count),
                std::vector<float>(kept.begin() + 2 * first, kept.begin() + 2 * (first + count)));
  const PerturbedDataset none(base, drop(1));
  EXPECT_EQ(none.index().modalities[0].offsets.back(), 0);
}

TEST(PerturbedDataset, DropsTheShareThatIsAskedForAndMoreAtAHigherOne) {
  const auto base = std::make_shared<MemoryDataset>(std::vector<std::string>{"audio"}, std::vector<int64_t>(4000, 1));
  std::vector<bool> before(4000, false);
  for (const double share : {0.1, 0.3, 0.7}) {
    const auto lost = dropped(*base, PerturbedDataset(base, drop(share)));
    const auto count = static_cast<double>(std::count(lost.begin(), lost.end(), true));
    EXPECT_NEAR(count / 4000, share, 4 * std::sqrt(share * (1 - share) / 4000));
    for (size_t i = 0; i < lost.size(); ++i) EXPECT_TRUE(lost[i] || !before[i]);
    before = lost;
  }
  EXPECT_NE(dropped(*base, PerturbedDataset(base, drop(0.5, 1))), dropped(*base, PerturbedDataset(base, drop(0.5, 2))));
}

TEST(PerturbedDataset, NoiseIsNormalByColumnAndTheSameHoweverItIsRead) {
  const auto base = std::make_shared<MemoryDataset>(std::vector<std::string>{"audio"}, std::vector<int64_t>(50, 80));
  const PerturbedDataset noisy(base, noise(0.5, {2, 0}));
  const auto clean = all_rows_of(*base, 0), values = all_rows_of(noisy, 0);
  std::vector<double> added;
  double fourth = 0;
  for (size_t i = 0; i < values.size(); i += 2) {
    added.push_back(values[i] - clean[i]);
    fourth += std::pow(added.back(), 4) / 4000;
    EXPECT_EQ(values[i + 1], clean[i + 1]);  // its scale is 0
  }
  const double mean = std::accumulate(added.begin(), added.end(), 0.0) / 4000;
  const double variance = std::inner_product(added.begin(), added.end(), added.begin(), 0.0) / 4000;
  EXPECT_NEAR(mean, 0, 4 / std::sqrt(4000));
  EXPECT_NEAR(variance, 1, 4 * std::sqrt(2.0 / 4000));
  EXPECT_NEAR(fourth, 3, 4 * std::sqrt(96.0 / 4000));
  for (const int64_t first : {0, 1, 79, 80, 2399})
    for (const int64_t count : {1, 2, 3, 160})
      EXPECT_EQ(rows_of(noisy, 0, first, count),
                std::vector<float>(values.begin() + 2 * first, values.begin() + 2 * (first + count)));
  EXPECT_NE(all_rows_of(PerturbedDataset(base, noise(0.5, {2, 0}, 2)), 0), values);
}

TEST(PerturbedDataset, NoiseOnAWaveformFollowsTheSamplesLoudness) {
  const auto base =
      std::make_shared<MemoryDataset>(std::vector<std::string>{"audio"}, std::vector<int64_t>{3000, 3000});
  base->index().modalities[0].kind = ModalityKind::kWaveform;
  for (size_t i = 0; i < base->values[0].size(); ++i)
    base->values[0][i] = (i % 4 < 2 ? 1.0f : -1.0f) * (i < 6000 ? 0.25f : 1.0f);
  const PerturbedDataset noisy(base, noise(0.1, {}));
  for (int64_t sample = 0; sample < 2; ++sample) {
    const auto clean = sample_of(*base, 0, sample), values = sample_of(noisy, 0, sample);
    double squares = 0;
    for (size_t i = 0; i < values.size(); ++i) squares += std::pow(values[i] - clean[i], 2);
    EXPECT_NEAR(std::sqrt(squares / 6000), 0.1 * (sample == 0 ? 0.25 : 1), 0.1 * 0.05);
    // A part of the sample gets the noise of the whole.
    EXPECT_EQ(rows_of(noisy, 0, 3000 * sample + 7, 9), std::vector<float>(values.begin() + 14, values.begin() + 32));
  }
  const auto second = sample_of(noisy, 0, 1);
  EXPECT_GT(*std::max_element(second.begin(), second.end()), 1);  // not clipped
}

TEST(PerturbedDataset, HashesWhatIsDone) {
  const auto base = memory();
  const PerturbedDataset one(base, drop(0.5)), other(base, drop(0.5, 2));
  EXPECT_EQ(one.source(), base->source());
  EXPECT_EQ(one.content_hash().size(), 64u);
  EXPECT_NE(one.content_hash(), other.content_hash());
  EXPECT_EQ(one.content_hash(), PerturbedDataset(base, drop(0.5)).content_hash());
}

}  // namespace
}  // namespace muster::data
