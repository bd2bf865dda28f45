#include "core/data/split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/error.h"
#include "core/data/synthetic.h"

namespace muster::data {
namespace {

using testing::HasSubstr;

// Samples with the given groups; classes alternate.
DatasetIndex grouped(const std::vector<std::string>& groups) {
  DatasetIndex index;
  index.task = Task::kClassification;
  index.class_names = {"a", "b"};
  for (size_t i = 0; i < groups.size(); ++i) {
    index.ids.push_back("s" + std::to_string(i));
    index.groups.push_back(groups[i]);
    index.splits.emplace_back();
    index.labels.push_back(static_cast<double>(i % 2));
  }
  return index;
}

void expect_partition(const Split& split, int64_t samples) {
  std::set<int64_t> all;
  for (const auto* part : {&split.train, &split.valid, &split.test}) {
    EXPECT_TRUE(std::is_sorted(part->begin(), part->end()));
    for (const int64_t sample : *part) EXPECT_TRUE(all.insert(sample).second) << sample;
  }
  EXPECT_EQ(static_cast<int64_t>(all.size()), samples);
}

void expect_error(const DatasetIndex& index, const SplitOptions& options, ExitCode code, const std::string& text) {
  try {
    make_split(index, options);
    FAIL() << "no error: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_THAT(error.what(), HasSubstr(text));
  }
}

TEST(Split, LeaveOneGroupOutOverAllFolds) {
  const auto data = make_synthetic(SyntheticKind::kClassification, 400, 1, 3);
  SplitOptions options;
  options.kind = SplitKind::kLeaveOneGroupOut;
  ASSERT_EQ(number_of_folds(data->index(), options), 5);
  std::set<int64_t> tested;
  for (options.fold = 0; options.fold < 5; ++options.fold) {
    const Split split = make_split(data->index(), options);
    expect_partition(split, 400);
    for (const int64_t sample : split.test) {
      EXPECT_EQ(data->index().groups[sample], "Ses0" + std::to_string(options.fold + 1));
      tested.insert(sample);
    }
    // A tenth of each class of the other groups: 24 or 16 per session of 80.
    std::map<double, int> total, valid;
    for (const auto* part : {&split.train, &split.valid})
      for (const int64_t sample : *part) ++total[data->index().labels[sample]];
    for (const int64_t sample : split.valid) ++valid[data->index().labels[sample]];
    for (const auto& [label, count] : total) EXPECT_NEAR(valid[label], 0.1 * count, 0.5 + 1e-9) << label;
  }
  EXPECT_EQ(tested.size(), 400u);
}

TEST(Split, GroupByNameEqualsGroupByIndex) {
  const DatasetIndex index = grouped({"z", "a", "m", "a", "z", "m", "a", "z", "m", "m"});
  SplitOptions options;
  options.kind = SplitKind::kLeaveOneGroupOut;
  options.fold = 1;
  const Split by_index = make_split(index, options);
  EXPECT_EQ(by_index.test, (std::vector<int64_t>{2, 5, 8, 9}));
  options.fold = 0;
  options.test_group = "m";
  const Split by_name = make_split(index, options);
  EXPECT_EQ(by_index.test, by_name.test);
  EXPECT_EQ(by_index.valid, by_name.valid);
}

TEST(Split, ValidationDependsOnTheSeedOnly) {
  const auto data = make_synthetic(SyntheticKind::kClassification, 400, 1, 3);
  SplitOptions options;
  options.kind = SplitKind::kLeaveOneGroupOut;
  const Split first = make_split(data->index(), options);
  EXPECT_EQ(first.valid, make_split(data->index(), options).valid);
  options.seed = 2;
  EXPECT_NE(first.valid, make_split(data->index(), options).valid);
}

TEST(Split, ValidationByGroupTakesWholeGroups) {
  const auto data = make_synthetic(SyntheticKind::kRegression, 500, 1, 3);
  SplitOptions options;
  options.kind = SplitKind::kKFold;
  options.validation_share = 0.2;
  options.validation_by_group = true;
  const Split split = make_split(data->index(), options);
  expect_partition(split, 500);
  std::map<std::string, std::set<int>> homes;
  int home = 0;
  for (const auto* part : {&split.train, &split.valid, &split.test}) {
    for (const int64_t sample : *part) homes[data->index().groups[sample]].insert(home);
    ++home;
  }
  for (const auto& [group, parts] : homes) EXPECT_EQ(parts.size(), 1u) << group;
  EXPECT_NEAR(static_cast<double>(split.valid.size()), 0.2 * 400, 7);
}

TEST(Split, ValidationShareIsOfTheOtherGroups) {
  std::vector<std::string> groups(100, "a");
  for (const char* name : {"b", "c", "d"}) groups.insert(groups.end(), 10, name);
  SplitOptions options;
  options.kind = SplitKind::kLeaveOneGroupOut;
  options.validation_share = 0.3;
  options.validation_by_group = true;
  for (options.seed = 1; options.seed < 10; ++options.seed) {
    const Split split = make_split(grouped(groups), options);
    EXPECT_EQ(split.test.size(), 100u);
    EXPECT_EQ(split.valid.size(), 10u) << options.seed;
  }
}

TEST(Split, KFoldDealsLargestGroupsFirst) {
  // Sizes: a 1, b 4, c 2, d 3. Two folds: b | d, then c joins d?  4 | 3 -> c to the second (5), a to the first (5).
  const DatasetIndex index = grouped({"a", "b", "b", "b", "b", "c", "c", "d", "d", "d"});
  SplitOptions options;
  options.kind = SplitKind::kKFold;
  options.folds = 2;
  options.validation_share = 0;
  EXPECT_EQ(make_split(index, options).test, (std::vector<int64_t>{0, 1, 2, 3, 4}));
  options.fold = 1;
  EXPECT_EQ(make_split(index, options).test, (std::vector<int64_t>{5, 6, 7, 8, 9}));
}

TEST(Split, FixedFollowsTheFile) {
  DatasetIndex index = grouped({"a", "a", "a", "a", "a"});
  index.splits = {"test", "train", "", "valid", "train"};
  const Split split = make_split(index, {});
  EXPECT_EQ(split.test, (std::vector<int64_t>{0}));
  EXPECT_EQ(split.valid, (std::vector<int64_t>{3}));
  EXPECT_EQ(split.train, (std::vector<int64_t>{1, 4}));
}

TEST(Split, Errors) {
  const DatasetIndex index = grouped({"a", "b", "c", "a", "b", "c"});
  SplitOptions options;
  expect_error(index, options, ExitCode::kBadConfig, "LEAVE_ONE_GROUP_OUT or K_FOLD would work");
  options.kind = SplitKind::kLeaveOneGroupOut;
  options.fold = 3;
  expect_error(index, options, ExitCode::kBadConfig, "has 3 groups");
  options.test_group = "x";
  expect_error(index, options, ExitCode::kBadConfig, "a, b, c");
  options.validation_share = 1;
  expect_error(index, options, ExitCode::kBadConfig, "validation_share");
  options = {};
  options.kind = SplitKind::kKFold;
  expect_error(index, options, ExitCode::kBadConfig, "only 3 groups");
  options.folds = 3;
  options.fold = 3;
  expect_error(index, options, ExitCode::kBadConfig, "3 folds");
  options.folds = 1;
  expect_error(index, options, ExitCode::kBadConfig, "at least 2");
  DatasetIndex ungrouped = grouped({"a", "", "c"});
  options.folds = 2;
  expect_error(ungrouped, options, ExitCode::kBadConfig, "'s1'");
  SplitOptions leave_one;
  leave_one.kind = SplitKind::kLeaveOneGroupOut;
  expect_error(grouped({"a", "a"}), leave_one, ExitCode::kBadConfig, "nothing is left");
}

TEST(Split, ClassAbsentFromTrainingIsNamed) {
  DatasetIndex index = grouped({"a", "a", "b", "b"});
  index.splits = {"train", "test", "train", "test"};
  expect_error(index, {}, ExitCode::kBadData, "class 'b'");
  SplitOptions evaluation;
  evaluation.for_training = false;
  EXPECT_EQ(make_split(index, evaluation).test.size(), 2u);
  index.splits = {"train", "train", "valid", "valid"};
  const Split without_test = make_split(index, {});  // a run may leave testing for later
  EXPECT_EQ(without_test.train.size(), 2u);
  EXPECT_TRUE(without_test.test.empty());
}

}  // namespace
}  // namespace muster::data
