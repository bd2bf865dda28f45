#include "core/config/stored.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/problems.h"
#include "core/config/fields.h"
#include "core/config/parse.h"
#include "core/config/resolved_text.h"
#include "core/config/text_file.h"

namespace muster::config {

namespace pb = google::protobuf;

namespace {

std::string text_at(const Experiment& experiment, const std::string& path) {
  const FieldAt at = find_field(experiment, path);
  if (at.field == nullptr) return "(not set)";
  if (at.field->message_type() != nullptr) return "(set)";
  if (!at.field->is_repeated()) return value_text(*at.message, *at.field, -1);
  std::string list = "[";
  for (int i = 0; i < at.message->GetReflection()->FieldSize(*at.message, at.field); ++i)
    list += (i ? ", " : "") + value_text(*at.message, *at.field, i);
  return list + "]";
}

// A block that only one of the two has is one difference, not one per value.
void compare(const Experiment& before, const Experiment& after, const pb::Descriptor& block, const std::string& prefix,
             std::vector<Difference>& found) {
  for (int i = 0; i < block.field_count(); ++i) {
    const auto& field = *block.field(i);
    const std::string path = prefix.empty() ? field.name() : prefix + "." + field.name();
    const std::string old_text = text_at(before, path), new_text = text_at(after, path);
    if (old_text != new_text) {
      found.push_back({path, old_text, new_text});
    } else if (field.message_type() != nullptr && !field.is_repeated() && old_text == "(set)") {
      compare(before, after, *field.message_type(), path, found);
    }
  }
}

}  // namespace

const std::vector<EarlierValue>& earlier_values() {
  static const std::vector<EarlierValue> all = {
      // {2, "training.example", "true"},  // until version 1, example was always done
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
      apply_override(path + "=" + value, defaults, problems);
  }
  problems.throw_if_any(ExitCode::kInternal);
  for (const auto& [model, block] : defaults.models) merge_over(defaults.experiment, block);
  return defaults.experiment;
}

uint32_t results_version_of(const std::string& text, const std::string& path) {
  uint32_t version = 1;
  for (const auto& [line, value] : header_values(text, kResultsVersionKey)) {
    const auto end = std::from_chars(value.data(), value.data() + value.size(), version);
    if (value.empty() || end.ec != std::errc() || *end.ptr != '\0' || version == 0)
      throw Error(ExitCode::kBadConfig,
                  fmt::format("{}:{}: {} needs a number from 1, not \"{}\"", path, line, kResultsVersionKey, value));
  }
  return version;
}

LoadedExperiment load_stored_experiment(const std::string& path, const std::vector<std::string>& overrides) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file) throw Error(ExitCode::kIo, path + ": cannot be read; is this the directory of a muster run?");
  return resolve_experiment(checked_text(text.str(), path), path, overrides, &earlier_values());
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
  std::ifstream file(path);
  std::string header;
  for (std::string line; std::getline(file, line) && line.rfind('#', 0) == 0;) header += line + '\n';
  return !header_values(header, kResultsVersionKey).empty();
}

LoadedExperiment load_any_experiment(const std::string& path) {
  return is_stored_experiment(path) ? load_stored_experiment(path) : load_experiment(path, {});
}

std::vector<Difference> differences(const Experiment& before, const Experiment& after) {
  std::vector<Difference> found;
  compare(before, after, *Experiment::descriptor(), "", found);
  return found;
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
                                          "training.data_on_device",
                                          "evaluation.patience"};
  for (const char* block : {"checkpoints", "deadlines"})
    if (path == block || path.rfind(std::string(block) + ".", 0) == 0) return true;
  // Where bits matter this does.
  if (path == "training.microbatches") return !experiment.training().reproducible();
  return free.count(path) != 0;
}

}  // namespace muster::config
