#include "core/data/split.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "core/random/philox.h"

namespace muster::data {
namespace {

using Groups = std::map<std::string, std::vector<int64_t>>;  // samples of each group; the map sorts the names

template <typename... Values>
[[noreturn]] void bad_config(fmt::format_string<Values...> text, Values&&... values) {
  throw Error(ExitCode::kBadConfig, fmt::format(text, std::forward<Values>(values)...));
}

std::string names_of(const Groups& groups) {
  std::vector<std::string> names;
  for (const auto& [name, samples] : groups)
    if (names.size() < 20) names.push_back(name);
  const size_t more = groups.size() - names.size();
  return join(names) + (more > 0 ? fmt::format(" and {} more", more) : "");
}

bool has_fixed_splits(const DatasetIndex& index) {
  return std::any_of(index.splits.begin(), index.splits.end(), [](const std::string& split) { return !split.empty(); });
}

Groups groups_of(const DatasetIndex& index, const char* kind) {
  Groups groups;
  for (int64_t sample = 0; sample < index.size(); ++sample) {
    const std::string& group = index.groups.at(static_cast<size_t>(sample));
    if (group.empty())
      bad_config(
          "data.split: kind {} needs the group (session, speaker or video) of every sample, but sample {} has none in "
          "/samples/group{}",
          kind, in_quotes(index.ids[sample]),
          has_fixed_splits(index) ? "; this data has fixed splits, so kind FIXED would work." : ".");
    groups[group].push_back(sample);
  }
  return groups;
}

uint64_t validation_key(uint64_t seed, int64_t position, uint32_t kind) {
  return random::bits64(
      seed, {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), random::kValidationShare, kind});
}

// The positions in the order of their random keys.
std::vector<int64_t> shuffled(const std::vector<int64_t>& positions, uint64_t seed, uint32_t kind) {
  std::vector<std::pair<uint64_t, int64_t>> keyed;
  for (const int64_t position : positions) keyed.emplace_back(validation_key(seed, position, kind), position);
  std::sort(keyed.begin(), keyed.end());
  std::vector<int64_t> result;
  for (const auto& [key, position] : keyed) result.push_back(position);
  return result;
}

std::set<int64_t> validation_samples(const DatasetIndex& index, const std::vector<int64_t>& rest,
                                     const SplitOptions& options) {
  const bool stratify = index.task == Task::kClassification && !index.labels.empty();
  std::map<int64_t, std::vector<int64_t>> strata;
  for (const int64_t sample : rest) strata[stratify ? static_cast<int64_t>(index.labels[sample]) : 0].push_back(sample);
  std::set<int64_t> chosen;
  for (const auto& [label, samples] : strata) {
    const auto size = static_cast<int64_t>(samples.size());
    const int64_t count =
        std::min<int64_t>(std::llround(options.validation_share * static_cast<double>(size)), size - 1);
    const auto order = shuffled(samples, options.seed, 0);
    chosen.insert(order.begin(), order.begin() + count);
  }
  return chosen;
}

// Whole groups in random order, as long as each brings the share nearer to what was asked; at least one, never all.
std::set<int64_t> validation_groups(const Groups& groups, const std::set<std::string>& test,
                                    const SplitOptions& options) {
  std::vector<const std::vector<int64_t>*> members;
  std::vector<int64_t> rest;  // positions in the sorted names, so that a group keeps its key in every fold
  int64_t total = 0, position = 0;
  for (const auto& [name, samples] : groups) {
    members.push_back(&samples);
    if (!test.count(name)) {
      rest.push_back(position);
      total += static_cast<int64_t>(samples.size());
    }
    ++position;
  }
  std::set<int64_t> chosen;
  if (options.validation_share <= 0) return chosen;
  if (rest.size() < 2)
    bad_config(
        "data.split: validation_by_group needs at least two groups besides the test set; set it to false or "
        "validation_share to 0.");
  const double wanted = options.validation_share * static_cast<double>(total);
  size_t taken = 0;
  for (const int64_t group : shuffled(rest, options.seed, 1)) {
    const auto size = static_cast<double>(members[group]->size());
    const auto have = static_cast<double>(chosen.size());
    if (taken + 1 == rest.size()) break;
    if (taken > 0 && std::abs(have + size - wanted) >= std::abs(have - wanted)) continue;
    chosen.insert(members[group]->begin(), members[group]->end());
    ++taken;
  }
  return chosen;
}

std::set<std::string> leave_one_out(const Groups& groups, const SplitOptions& options) {
  if (!options.test_group.empty()) {
    if (!groups.count(options.test_group))
      bad_config("data.split.test_group: there is no group {}; the data's groups are: {}.",
                 in_quotes(options.test_group), names_of(groups));
    return {options.test_group};
  }
  if (options.fold < 0 || options.fold >= static_cast<int64_t>(groups.size()))
    bad_config("data.split.fold: is {}, but the data has {} groups, numbered from 0: {}.", options.fold, groups.size(),
               names_of(groups));
  return {std::next(groups.begin(), options.fold)->first};
}

// Largest group first, each to the fold that has fewest samples so far.
std::set<std::string> fold_of_groups(const Groups& groups, const SplitOptions& options) {
  if (options.folds < 2) bad_config("data.split.folds: is {}; it must be at least 2.", options.folds);
  if (options.folds > static_cast<int64_t>(groups.size()))
    bad_config("data.split.folds: is {}, but the data has only {} groups: {}.", options.folds, groups.size(),
               names_of(groups));
  if (options.fold < 0 || options.fold >= options.folds)
    bad_config("data.split.fold: is {}, but there are {} folds, numbered from 0.", options.fold, options.folds);
  std::vector<Groups::const_iterator> order;
  for (auto group = groups.begin(); group != groups.end(); ++group) order.push_back(group);
  std::stable_sort(order.begin(), order.end(), [](auto a, auto b) { return a->second.size() > b->second.size(); });
  std::vector<size_t> sizes(static_cast<size_t>(options.folds), 0);
  std::set<std::string> test;
  for (const auto& group : order) {
    const auto smallest = std::min_element(sizes.begin(), sizes.end());
    *smallest += group->second.size();
    if (smallest - sizes.begin() == options.fold) test.insert(group->first);
  }
  return test;
}

Split fixed_split(const DatasetIndex& index) {
  if (!has_fixed_splits(index)) {
    const bool grouped =
        std::all_of(index.groups.begin(), index.groups.end(), [](const std::string& group) { return !group.empty(); });
    bad_config("data.split: kind FIXED needs the data's own splits, but it has none in /samples/split; it has {}",
               grouped && !index.groups.empty()
                   ? "groups, so LEAVE_ONE_GROUP_OUT or K_FOLD would work."
                   : "no groups either, so no other kind works: add /samples/split or /samples/group.");
  }
  Split split;
  for (int64_t sample = 0; sample < index.size(); ++sample) {
    const std::string& word = index.splits[sample];
    if (word == "train") split.train.push_back(sample);
    if (word == "valid") split.valid.push_back(sample);
    if (word == "test") split.test.push_back(sample);
  }
  return split;
}

void check_classes(const DatasetIndex& index, const Split& split) {
  if (index.task != Task::kClassification || index.labels.empty()) return;
  std::set<int64_t> present, trained;
  for (const double label : index.labels) present.insert(static_cast<int64_t>(label));
  for (const int64_t sample : split.train) trained.insert(static_cast<int64_t>(index.labels[sample]));
  std::vector<std::string> absent;
  for (const int64_t label : present)
    if (!trained.count(label)) absent.push_back(in_quotes(index.class_names.at(static_cast<size_t>(label))));
  if (!absent.empty())
    throw Error(ExitCode::kBadData, fmt::format("The training set has no sample of class {}, so it cannot be learnt. "
                                                "Choose another split, or drop the class from the data.",
                                                join(absent)));
}

}  // namespace

Split make_split(const DatasetIndex& index, const SplitOptions& options) {
  if (!(options.validation_share >= 0 && options.validation_share < 1))
    bad_config("data.split.validation_share: is {:f}; it must be at least 0 and below 1.", options.validation_share);
  Split split;
  if (options.kind == SplitKind::kFixed) {
    split = fixed_split(index);
  } else {
    const bool leave_one = options.kind == SplitKind::kLeaveOneGroupOut;
    const Groups groups = groups_of(index, leave_one ? "LEAVE_ONE_GROUP_OUT" : "K_FOLD");
    const std::set<std::string> test = leave_one ? leave_one_out(groups, options) : fold_of_groups(groups, options);
    std::vector<int64_t> rest;
    for (int64_t sample = 0; sample < index.size(); ++sample)
      (test.count(index.groups[sample]) ? split.test : rest).push_back(sample);
    if (rest.empty())
      bad_config("data.split: all samples are in the test group {}; nothing is left to train on.",
                 in_quotes(*test.begin()));
    const std::set<int64_t> valid = options.validation_by_group ? validation_groups(groups, test, options)
                                                                : validation_samples(index, rest, options);
    for (const int64_t sample : rest) (valid.count(sample) ? split.valid : split.train).push_back(sample);
  }
  if (!options.for_training) return split;
  if (split.test.empty() && options.kind != SplitKind::kFixed) bad_config("data.split: the test set is empty.");
  if (split.train.empty()) bad_config("data.split: the training set is empty.");
  check_classes(index, split);
  return split;
}

int64_t number_of_folds(const DatasetIndex& index, const SplitOptions& options) {
  if (options.kind == SplitKind::kFixed) return 1;
  if (options.kind == SplitKind::kKFold) return options.folds;
  return static_cast<int64_t>(groups_of(index, "LEAVE_ONE_GROUP_OUT").size());
}

}  // namespace muster::data
