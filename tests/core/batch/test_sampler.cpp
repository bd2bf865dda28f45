#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "core/batch/plan.h"

namespace muster::batch {
namespace {

std::vector<int64_t> range(int64_t n, int64_t first = 0) {
  std::vector<int64_t> samples(n);
  std::iota(samples.begin(), samples.end(), first);
  return samples;
}

TEST(Shuffle, IsAPermutationThatChangesWithEpochAndSeed) {
  const auto samples = range(500, 100);
  std::set<std::vector<int64_t>> orders;
  for (const uint64_t seed : {uint64_t{1}, uint64_t{2}, (uint64_t{1} << 32) + 1})
    for (const uint32_t epoch : {0u, 1u, 2u, 1000000u}) {
      auto order = epoch_order(samples, {}, config::Training::SHUFFLE, seed, epoch);
      EXPECT_EQ(order, epoch_order(samples, {}, config::Training::SHUFFLE, seed, epoch));
      EXPECT_TRUE(orders.insert(order).second) << "seed " << seed << ", epoch " << epoch;
      int64_t fixed = 0;
      for (size_t i = 0; i < order.size(); ++i) fixed += order[i] == samples[i];
      EXPECT_LT(fixed, 10);
      std::sort(order.begin(), order.end());
      EXPECT_EQ(order, samples);
    }
}

TEST(Shuffle, KeepsTheOrderOfAnyTwoSamplesWhateverElseThereIs) {
  const auto all = epoch_order(range(200), {}, config::Training::SHUFFLE, 3, 4);
  std::vector<int64_t> even, even_of_all;
  for (int64_t i = 198; i >= 0; i -= 2) even.push_back(i);
  for (const int64_t sample : all)
    if (sample % 2 == 0) even_of_all.push_back(sample);
  EXPECT_EQ(epoch_order(even, {}, config::Training::SHUFFLE, 3, 4), even_of_all);
}

TEST(Shuffle, EveryPlaceIsEquallyLikely) {
  constexpr int kEpochs = 12000;
  std::vector<std::vector<double>> counts(6, std::vector<double>(6, 0));
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    const auto order = epoch_order(range(6), {}, config::Training::SHUFFLE, 1, epoch);
    for (int place = 0; place < 6; ++place) ++counts[order[place]][place];
  }
  for (int sample = 0; sample < 6; ++sample) {
    double chi_square = 0;
    for (const double count : counts[sample]) chi_square += std::pow(count - kEpochs / 6.0, 2) / (kEpochs / 6.0);
    EXPECT_LT(chi_square, 20.5) << sample;  // 0.1 % level, 5 degrees of freedom
  }
}

TEST(ClassBalanced, ClassesAreEquallyLikelyAndSamplesWithinThem) {
  // 90 samples of class 0, 9 of class 2, 1 of class 3.
  const auto samples = range(100, 1000);
  std::vector<double> labels(100, 0);
  std::fill(labels.begin() + 90, labels.begin() + 99, 2.0);
  labels[99] = 3;
  std::map<int64_t, double> drawn;
  double total = 0;
  for (uint32_t epoch = 0; epoch < 300; ++epoch) {
    const auto order = epoch_order(samples, labels, config::Training::CLASS_BALANCED, 1, epoch);
    ASSERT_EQ(order.size(), samples.size());
    for (const int64_t sample : order) ++drawn[sample], ++total;
    ASSERT_EQ(order, epoch_order(samples, labels, config::Training::CLASS_BALANCED, 1, epoch));
  }
  double chi_square = 0;
  for (int64_t i = 0; i < 100; ++i) {
    const double expected = total / 3 / (i < 90 ? 90 : i < 99 ? 9 : 1);
    chi_square += std::pow(drawn[1000 + i] - expected, 2) / expected;
    drawn.erase(1000 + i);
  }
  EXPECT_TRUE(drawn.empty());
  EXPECT_LT(chi_square, 148.3);  // 0.1 % level, 99 degrees of freedom
  EXPECT_NE(epoch_order(samples, labels, config::Training::CLASS_BALANCED, 1, 0),
            epoch_order(samples, labels, config::Training::CLASS_BALANCED, 1, 1));
  EXPECT_NE(epoch_order(samples, labels, config::Training::CLASS_BALANCED, 1, 0),
            epoch_order(samples, labels, config::Training::CLASS_BALANCED, 2, 0));
}

TEST(Sequential, IsTheOrderGiven) {
  const std::vector<int64_t> samples{5, 2, 9, 2};
  EXPECT_EQ(epoch_order(samples, {}, config::Training::SEQUENTIAL, 1, 3), samples);
  for (const auto sampling :
       {config::Training::SEQUENTIAL, config::Training::SHUFFLE, config::Training::CLASS_BALANCED})
    EXPECT_TRUE(epoch_order({}, {}, sampling, 1, 0).empty());
}

}  // namespace
}  // namespace muster::batch
