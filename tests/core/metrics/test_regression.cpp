#include "core/metrics/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace muster::metrics {
namespace {

double value(const std::vector<double>& predictions, const std::vector<double>& labels, const std::string& name) {
  return metric_value(regression_metrics(predictions, labels), name);
}

TEST(Regression, HalvesRoundToEven) {
  EXPECT_EQ(value({0.5, 1.5, 2.5, -0.5}, {0, 2, 2, 0}, "Mult_acc_7"), 1);
  EXPECT_EQ(value({0.5, 1.5, 2.5, -0.5}, {1, 1, 3, -1}, "Mult_acc_7"), 0);
}

TEST(Regression, BothSidesAreClipped) {
  EXPECT_EQ(value({9, -9}, {3, -3}, "Mult_acc_7"), 1);
  EXPECT_EQ(value({3, -9}, {2, -2}, "Mult_acc_5"), 1);
  EXPECT_EQ(value({3, 3}, {9, 2}, "Mult_acc_7"), 0.5);
}

TEST(Regression, ZeroIsPositiveWithZerosAndNotWithout) {
  EXPECT_EQ(value({0.0, -0.0}, {0.0, 1.0}, "Has0_acc_2"), 1);
  EXPECT_EQ(value({0.0, -0.0}, {-1.0, 1.0}, "Non0_acc_2"), 0.5);
}

TEST(Regression, LabelsOfZeroOnlyLeaveNothingForNon0) {
  EXPECT_TRUE(std::isnan(value({1, -1}, {0, -0.0}, "Non0_acc_2")));
  EXPECT_TRUE(std::isnan(value({1, -1}, {0, -0.0}, "Non0_F1_score")));
  EXPECT_EQ(value({1, -1}, {0, -0.0}, "Has0_acc_2"), 0.5);
}

TEST(Regression, CorrelationNeedsVariationOnBothSides) {
  const std::vector<double> constant(11, 0.1);  // its mean is not exactly 0.1
  const std::vector<double> varied = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12};
  EXPECT_TRUE(std::isnan(value(constant, varied, "Corr")));
  EXPECT_TRUE(std::isnan(value(varied, constant, "Corr")));
  EXPECT_TRUE(std::isnan(value({1}, {2}, "Corr")));
  EXPECT_DOUBLE_EQ(value({1, 2}, {10, 20}, "Corr"), 1);
  EXPECT_DOUBLE_EQ(value({1, 2}, {20, 10}, "Corr"), -1);
}

TEST(Regression, WeightedF1OfOneSidedPredictions) {
  // Positive class: precision 3/4, recall 1, F1 6/7, three labels; negative class: never predicted, F1 0, one label.
  EXPECT_DOUBLE_EQ(value({1, 1, 1, 1}, {1, 1, 1, -1}, "Has0_F1_score"), 6.0 / 7 * 3 / 4);
}

TEST(Regression, SizesMustAgree) { EXPECT_THROW(regression_metrics({1}, {}), std::invalid_argument); }

}  // namespace
}  // namespace muster::metrics
