#include "core/data/synthetic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "base/error.h"

namespace muster::data {
namespace {

std::vector<float> read_all(const Dataset& data, int64_t modality) {
  const Modality& table = data.index().modalities[modality];
  std::vector<float> values(static_cast<size_t>(table.offsets.back() * table.dim));
  data.read_frames(modality, 0, table.offsets.back(), values.data());
  return values;
}

void expect_any_range_is_the_same(const Dataset& data, int64_t step) {
  for (int64_t modality = 0; modality < static_cast<int64_t>(data.index().modalities.size()); ++modality) {
    const std::vector<float> whole = read_all(data, modality);
    const Modality& table = data.index().modalities[modality];
    std::vector<float> pieces(whole.size());
    for (int64_t first = 0; first < table.offsets.back(); first += step) {
      const int64_t count = std::min<int64_t>(step, table.offsets.back() - first);
      data.read_frames(modality, first, count, pieces.data() + first * table.dim);
    }
    EXPECT_EQ(whole, pieces);
  }
}

TEST(Synthetic, AnyRangeGivesTheSameFrames) {
  for (const auto kind : {SyntheticKind::kClassification, SyntheticKind::kRegression}) {
    const auto data = make_synthetic(kind, 30, 1, 5, {{}, 0, kind == SyntheticKind::kRegression ? 3 : 1});
    expect_any_range_is_the_same(*data, 7);
  }
  expect_any_range_is_the_same(*make_synthetic(SyntheticKind::kClassification, 7, 1, 5, {{}, 0, 1, true}), 9971);
}

TEST(Synthetic, DependsOnSeedAndNoise) {
  const auto base = make_synthetic(SyntheticKind::kRegression, 20, 1, 5);
  const auto same = make_synthetic(SyntheticKind::kRegression, 20, 1, 5);
  const auto other = make_synthetic(SyntheticKind::kRegression, 20, 1, 6);
  EXPECT_EQ(read_all(*base, 0), read_all(*same, 0));
  EXPECT_EQ(base->content_hash(), same->content_hash());
  EXPECT_NE(base->index().labels, other->index().labels);
  EXPECT_NE(base->content_hash(), other->content_hash());
  EXPECT_NE(base->content_hash(), make_synthetic(SyntheticKind::kRegression, 20, 2, 5)->content_hash());
}

TEST(Synthetic, HashNamesWhatIsPlanted) {
  const auto hash = [](SyntheticKind kind, const SyntheticSignal& signal) {
    return make_synthetic(kind, 20, 1, 5, signal)->content_hash();
  };
  // As it was before there were any of these.
  EXPECT_EQ(hash(SyntheticKind::kRegression, {}), "81a5d993183be66e5016108b59566ecbe7c9bfc6927bd1da63654b326222b86c");
  EXPECT_EQ(hash(SyntheticKind::kClassification, {}),
            "e1567a2382d0ad5582f936ea556eb6f49cca32811eb68ec66513a555ca993ea2");
  const std::set<std::string> hashes{hash(SyntheticKind::kRegression, {}),
                                     hash(SyntheticKind::kRegression, {{"text"}, 0, 1}),
                                     hash(SyntheticKind::kRegression, {{"audio", "text"}, 0, 1}),
                                     hash(SyntheticKind::kRegression, {{}, 0, 2}),
                                     hash(SyntheticKind::kRegression, {{}, 0, 3}),
                                     hash(SyntheticKind::kClassification, {}),
                                     hash(SyntheticKind::kClassification, {{}, 0.5, 1}),
                                     hash(SyntheticKind::kClassification, {{"audio"}, 0.5, 1})};
  EXPECT_EQ(hashes.size(), 8u);
  const SyntheticSignal raw{{}, 0, 1, true}, raw_without{{"text"}, 0, 1, true};
  EXPECT_EQ(hash(SyntheticKind::kClassification, raw),
            "6485c2feeadad70a09eeacaead7ce66a7812bbf6b84f210dc2d14e7b1f17c63e");
  EXPECT_NE(hash(SyntheticKind::kClassification, raw), hash(SyntheticKind::kClassification, raw_without));
}

TEST(Synthetic, NoiseHasTheStatedDeviation) {
  const auto quiet = make_synthetic(SyntheticKind::kClassification, 200, 0, 5);
  const auto noisy = make_synthetic(SyntheticKind::kClassification, 200, 2, 5);
  const auto a = read_all(*quiet, 0), b = read_all(*noisy, 0);
  double sum = 0, square = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = b[i] - a[i];
    sum += difference;
    square += difference * difference;
  }
  const double count = static_cast<double>(a.size());  // about 250,000
  EXPECT_NEAR(sum / count, 0, 0.02);
  EXPECT_NEAR(std::sqrt(square / count), 2, 0.02);
}

TEST(Synthetic, RegressionStructure) {
  const auto data = make_synthetic(SyntheticKind::kRegression, 600, 1, 1);
  const DatasetIndex& index = data->index();
  std::map<std::string, std::set<std::string>> splits_of_group;
  std::map<std::string, int> sizes;
  for (int64_t sample = 0; sample < index.size(); ++sample) {
    splits_of_group[index.groups[sample]].insert(index.splits[sample]);
    ++sizes[index.splits[sample]];
    const double label = index.labels[sample];
    EXPECT_LE(std::abs(label), 3);
    EXPECT_NEAR(label * 5, std::nearbyint(label * 5), 1e-5);
    EXPECT_EQ(label, static_cast<double>(static_cast<float>(label)));
  }
  for (const auto& [group, splits] : splits_of_group) EXPECT_EQ(splits.size(), 1u) << group;
  EXPECT_NEAR(sizes["train"], 360, 8);
  EXPECT_NEAR(sizes["valid"], 90, 8);
  EXPECT_NEAR(sizes["test"], 150, 8);
}

TEST(Synthetic, ClassificationStructure) {
  for (const int64_t samples : {20, 50, 400}) {
    const auto data = make_synthetic(SyntheticKind::kClassification, samples, 1, 1);
    const DatasetIndex& index = data->index();
    std::map<std::string, std::set<double>> classes;
    std::set<std::string> groups(index.groups.begin(), index.groups.end());
    for (int64_t sample = 0; sample < samples; ++sample) {
      classes[index.splits[sample]].insert(index.labels[sample]);
      EXPECT_EQ(index.splits[sample] == "test", index.groups[sample] == "Ses05");
    }
    EXPECT_EQ(groups.size(), 5u);
    EXPECT_EQ(classes["train"].size(), 4u);
    EXPECT_EQ(classes["test"].size(), 4u);
    EXPECT_FALSE(classes["valid"].empty());
  }
}

TEST(Synthetic, RefusesImpossibleSettings) {
  EXPECT_THROW(make_synthetic(SyntheticKind::kRegression, 0, 1, 1), Error);
  EXPECT_THROW(make_synthetic(SyntheticKind::kRegression, 5, -1, 1), Error);
  EXPECT_THROW(make_synthetic(SyntheticKind::kRegression, 5, NAN, 1), Error);
  EXPECT_THROW(make_synthetic(SyntheticKind::kClassification, 5, 1, 1, {{}, NAN, 1}), Error);
  EXPECT_THROW(make_synthetic(SyntheticKind::kClassification, 5, 1, 1, {{"text"}, 0, 1}), Error);
  EXPECT_THROW(make_synthetic(SyntheticKind::kRegression, 5, 1, 1, {{}, 0, 1, true}), Error);
  EXPECT_THROW(make_synthetic(SyntheticKind::kClassification, 5, 1, 1, {{}, 0.5, 1, true}), Error);
  EXPECT_THROW(make_synthetic(SyntheticKind::kClassification, 5, 1, 1, {{"vision"}, 0, 1, true}), Error);
}

}  // namespace
}  // namespace muster::data
