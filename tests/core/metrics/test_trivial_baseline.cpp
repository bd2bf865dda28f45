#include "core/metrics/trivial_baseline.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace muster::metrics {
namespace {

TEST(Floors, MedianIsNumpys) {
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(median({7}), 7);
  EXPECT_TRUE(std::isnan(median({})));
}

TEST(Floors, TiesGoToTheLowestClass) {
  EXPECT_EQ(majority_class({2, 1, 1, 2, 0}, 3), 1);
  EXPECT_THROW(majority_class({}, 3), std::invalid_argument);
  EXPECT_THROW(majority_class({3}, 3), std::invalid_argument);
}

TEST(Floors, AreFittedOnTrainAndScoredOnOthers) {
  const Metrics regression = regression_baseline({-1, -1, 5}, {1, 2, 3});
  EXPECT_EQ(metric_value(regression, "MAE"), 3);
  EXPECT_EQ(metric_value(regression, "Has0_acc_2"), 0);
  EXPECT_TRUE(std::isnan(metric_value(regression, "Corr")));
  const ClassificationResult classification = classification_baseline({1, 1, 0}, {0, 0, 0, 1}, 2);
  EXPECT_EQ(metric_value(classification.metrics, "WA"), 0.25);
  EXPECT_EQ(metric_value(classification.metrics, "UA"), 0.5);
}

}  // namespace
}  // namespace muster::metrics
