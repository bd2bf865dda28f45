#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace muster::data {

enum class SplitKind { kFixed, kLeaveOneGroupOut, kKFold };

// The fields of muster.config.Split, which documents them, and the experiment's seed.
struct SplitOptions {
  SplitKind kind = SplitKind::kFixed;
  int64_t fold = 0;
  std::string test_group;  // leave-one-group-out: instead of `fold`
  int64_t folds = 5;
  double validation_share = 0.1;
  bool validation_by_group = false;
  uint64_t seed = 1;
  bool for_training = true;  // false (evaluate, predict): any set may be empty, training may lack classes
};

// Positions in dataset order, ascending; disjoint. `valid` may be empty.
struct Split {
  std::vector<int64_t> train, valid, test;
};

// A pure function of its arguments, so every rank and every resumed run computes the same.
// Throws Error(kBadConfig) when the options do not fit the data (fold out of range, unknown group, no groups, no fixed
// splits, an empty training or test set), Error(kBadData) when a class that occurs in the data is absent from training.
Split make_split(const DatasetIndex& index, const SplitOptions& options);

// Number of folds that `options` describes: 1 for kFixed, the number of groups for kLeaveOneGroupOut, `folds` for
// kKFold.
int64_t number_of_folds(const DatasetIndex& index, const SplitOptions& options);

}  // namespace muster::data
