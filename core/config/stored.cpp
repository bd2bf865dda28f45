#include "core/config/stored.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/problems.h"
#include "base/text.h"
#include "core/config/fields.h"
#include "core/config/parse.h"
#include "core/config/resolved_text.h"
#include "core/config/text_format.h"

namespace muster::config {

namespace pb = google::protobuf;

namespace {

// A block that only one of the two has is one difference, not one per value.
void compare(const Experiment& before, const Experiment& after, const pb::Descriptor& block, const std::string& prefix,
             std::vector<Difference>& found) {
  for (int i = 0; i < block.field_count(); ++i) {
    const auto& field = *block.field(i);
    const std::string path = join_path(prefix, field.name());
    if (field.message_type() != nullptr && field.is_repeated()) {
      for (int element = 0;; ++element) {
        const std::string place = fmt::format("{}[{}]", path, element);
        const std::string old_text = value_text(before, place, ""), new_text = value_text(after, place, "");
        if (old_text.empty() && new_text.empty()) break;
        if (old_text != new_text)
          found.push_back(
              {place, old_text.empty() ? "(not set)" : old_text, new_text.empty() ? "(not set)" : new_text});
        else
          compare(before, after, *field.message_type(), place, found);
      }
      continue;
    }
    const std::string old_text = value_text(before, path, "(not set)"), new_text = value_text(after, path, "(not set)");
    if (old_text != new_text) {
      found.push_back({path, old_text, new_text});
    } else if (field.message_type() != nullptr && old_text == "(set)") {
      compare(before, after, *field.message_type(), path, found);
    }
  }
}

}  // namespace

const std::vector<EarlierValue>& earlier_values() {
  static const std::vector<EarlierValue> all = {
      {2, "data.standardize_in_float32", "true"},
  };
  return all;
}

Experiment defaults_of_version(const Experiment& experiment, uint32_t version,
                               const std::vector<EarlierValue>& earlier) {
  Problems problems("earlier_values()");
  Parsed defaults;
  defaults.experiment = defaults_for(experiment);
  std::set<std::string> seen;  // the first change after `version` ends what was valid then
  std::vector<EarlierValue> sorted = earlier;
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.since < b.since; });
  for (const auto& [since, path, value] : sorted) {
    const size_t dot = path.rfind('.');
    const bool has_block =
        dot == std::string::npos || find_field(defaults.experiment, path.substr(0, dot)).field != nullptr;
    if (since > version && has_block && seen.insert(path).second)
      apply_override(fmt::format("{}={}", path, value), defaults, problems);
  }
  problems.throw_if_any(ExitCode::kInternal);
  for (const auto& [model, block] : defaults.models) merge_over(defaults.experiment, block);
  return defaults.experiment;
}

uint32_t results_version_of(const std::string& text, const std::string& path) {
  uint32_t version = 1;
  for (const auto& [line, value] : header_values(text, kResultsVersionKey)) {
    const auto number = parse_integer(value);
    if (!number || *number < 1 || *number > std::numeric_limits<uint32_t>::max())
      throw Error(ExitCode::kBadConfig,
                  fmt::format("{}:{}: {} needs a number from 1, not \"{}\"", path, line, kResultsVersionKey, value));
    version = static_cast<uint32_t>(*number);
  }
  return version;
}

LoadedExperiment load_stored_experiment(const std::string& path, const std::vector<std::string>& overrides) {
  const auto text = read_file_if_there(path, std::numeric_limits<uint64_t>::max());  // too large: see checked_text()
  if (!text) throw Error(ExitCode::kIo, path + ": cannot be read; is this the directory of a muster run?");
  return resolve_experiment(checked_text(*text, path), path, overrides, &earlier_values());
}

Experiment parse_stored_experiment(const std::string& text, const std::string& path,
                                   const std::vector<EarlierValue>& earlier) {
  return resolve_experiment(checked_text(text, path), path, {}, &earlier).experiment;
}

bool is_stored_experiment(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(path).parent_path();
  std::error_code ignored;
  if (fs::path(path).filename() == "config.txtpb" &&
      (fs::exists(folder / "environment.json", ignored) || fs::exists(folder / "result.json", ignored)))
    return true;
  return !header_values(read_file_if_there(path, kLargestFile).value_or(""), kResultsVersionKey).empty();
}

LoadedExperiment load_any_experiment(const std::string& path, const std::vector<std::string>& overrides) {
  return is_stored_experiment(path) ? load_stored_experiment(path, overrides) : load_experiment(path, overrides);
}

std::vector<Difference> differences(const Experiment& before, const Experiment& after) {
  std::vector<Difference> found;
  compare(before, after, *Experiment::descriptor(), "", found);
  return found;
}

std::vector<Difference> earlier_choices(const Experiment& stored, const Experiment& asked) {
  std::vector<Difference> choices;
  const Experiment defaults = defaults_for(asked);
  for (const auto& difference : differences(stored, asked)) {
    const auto is_it = [&](const EarlierValue& earlier) { return earlier.path == difference.path; };
    if (std::any_of(earlier_values().begin(), earlier_values().end(), is_it) &&
        difference.after == value_text(defaults, difference.path, "(not set)"))
      choices.push_back(difference);
  }
  return choices;
}

bool may_change_in_a_run(const std::string& path, const Experiment& experiment) {
  static const std::set<std::string> free{"name",
                                          "preset",
                                          "data.path",
                                          "training.epochs",
                                          "training.max_steps",
                                          "training.log_every_steps",
                                          "training.threads",
                                          "training.device",
                                          "training.share_device",
                                          "training.share_cores",
                                          "training.data_on_device",
                                          "training.recompute",
                                          "encoders.path",
                                          "evaluation.patience",
                                          "checkpoints",
                                          "deadlines"};
  // It changes bits, which matter only where runs must be reproducible.
  if (path == "training.microbatches") return !experiment.training().reproducible();
  const size_t bracket = path.find('[');
  const std::string name =
      bracket == std::string::npos ? path : path.substr(0, bracket) + path.substr(path.find(']') + 1);
  return free.count(name) != 0 || free.count(name.substr(0, name.find('.'))) != 0;
}

}  // namespace muster::config
