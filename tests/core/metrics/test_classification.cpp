#include "core/metrics/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace muster::metrics {
namespace {

TEST(Classification, RowsAreLabelsAndColumnsPredictions) {
  const ClassificationResult result = classification_metrics({1, 1, 0}, {0, 1, 0}, 3);
  EXPECT_EQ(result.confusion, (std::vector<std::vector<int64_t>>{{1, 1, 0}, {0, 1, 0}, {0, 0, 0}}));
  EXPECT_EQ(result.per_class_recall[0], 0.5);
  EXPECT_EQ(result.per_class_recall[1], 1);
  EXPECT_TRUE(std::isnan(result.per_class_recall[2]));
}

TEST(Classification, UaIgnoresClassesWithoutLabels) {
  const ClassificationResult result = classification_metrics({0, 1, 2, 1}, {0, 1, 1, 1}, 4);
  EXPECT_DOUBLE_EQ(metric_value(result.metrics, "WA"), 0.75);
  EXPECT_DOUBLE_EQ(metric_value(result.metrics, "UA"), (1 + 2.0 / 3) / 2);
}

TEST(Classification, NoSamples) {
  const ClassificationResult result = classification_metrics({}, {}, 2);
  for (const auto& [name, value] : result.metrics) EXPECT_TRUE(std::isnan(value)) << name;
  EXPECT_EQ(result.confusion, (std::vector<std::vector<int64_t>>{{0, 0}, {0, 0}}));
}

TEST(Classification, RefusesWhatIsNoClass) {
  EXPECT_THROW(classification_metrics({0}, {2}, 2), std::invalid_argument);
  EXPECT_THROW(classification_metrics({-1}, {0}, 2), std::invalid_argument);
  EXPECT_THROW(classification_metrics({0, 1}, {0}, 2), std::invalid_argument);
}

}  // namespace
}  // namespace muster::metrics
