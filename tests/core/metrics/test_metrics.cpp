#include "core/metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace muster::metrics {
namespace {

std::vector<std::string> names_of(const Metrics& metrics) {
  std::vector<std::string> names;
  for (const auto& [name, value] : metrics) names.push_back(name);
  return names;
}

TEST(Metrics, NamesAreThoseReportedInTheirOrder) {
  EXPECT_EQ(names_of(regression_metrics({1}, {1})), metric_names(data::Task::kRegression));
  EXPECT_EQ(names_of(regression_metrics({}, {})), metric_names(data::Task::kRegression));
  EXPECT_EQ(names_of(classification_metrics({0}, {0}, 1).metrics), metric_names(data::Task::kClassification));
}

TEST(Metrics, OnlyErrorsAreBetterWhenLower) {
  EXPECT_FALSE(higher_is_better("loss"));
  for (data::Task task : {data::Task::kRegression, data::Task::kClassification, data::Task::kMultilabel})
    for (const std::string& name : metric_names(task))
      EXPECT_EQ(higher_is_better(name), name != "MAE" && name != "SIMS_MAE") << name;
  EXPECT_TRUE(higher_is_better("WA[happy]"));
}

TEST(Metrics, UnknownNamesAreRefusedWithTheKnownOnes) {
  try {
    higher_is_better("mae");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadConfig);
    EXPECT_THAT(error.what(), ::testing::AllOf(::testing::HasSubstr("\"mae\""), ::testing::HasSubstr("MAE, Corr")));
  }
  EXPECT_EQ(metric_value({{"WA", 0.5}}, "WA"), 0.5);
  EXPECT_THROW(metric_value({{"WA", 0.5}}, "UA"), Error);
}

}  // namespace
}  // namespace muster::metrics
