#include "core/config/load.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/problems.h"
#include "core/config/check.h"
#include "core/config/fields.h"
#include "core/config/parse.h"
#include "core/config/presets.h"
#include "core/config/text_file.h"
#include "core/models/spec.h"

namespace muster::config {

namespace fs = std::filesystem;
namespace pb = google::protobuf;

namespace {

constexpr char kMessage[] = "muster.config.Experiment";

// The defaults for an experiment that has the models and the data source of `experiment`.
Experiment defaults_for(const Experiment& experiment) {
  Experiment defaults = default_experiment(models::model_of(experiment));
  if (!experiment.data().has_synthetic()) defaults.mutable_data()->clear_synthetic();
  return defaults;
}

// Empty text is how a command line takes a value back.
void clear_empty_texts(Parsed& parsed) {
  Experiment& experiment = parsed.experiment;
  const auto forget = [&](const std::string& path) { parsed.origins.erase(path); };
  if (experiment.has_name() && experiment.name().empty()) experiment.clear_name(), forget("name");
  if (experiment.has_preset() && experiment.preset().empty()) experiment.clear_preset(), forget("preset");
  if (!experiment.has_data()) return;
  Data& data = *experiment.mutable_data();
  if (data.has_path() && data.path().empty()) data.clear_path(), forget("data.path");
  if (data.has_split() && data.split().has_test_group() && data.split().test_group().empty()) {
    data.mutable_split()->clear_test_group(), forget("data.split.test_group");
  }
}

// The preset that `parsed` names, without a model other than the one that it has; empty when it names none.
Experiment preset_of(Parsed& parsed, Problems& problems) {
  const std::string name = parsed.experiment.preset();
  if (name.empty() || parsed.unusable.count("preset") != 0) return {};
  Experiment preset;
  try {
    if (!pb::TextFormat::ParseFromString(preset_text(name), &preset))
      throw Error(ExitCode::kInternal, "the built-in preset " + name + " cannot be read");
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadConfig) throw;
    problems.at(parsed.origins["preset"], error.what());
    parsed.complete = false;  // the preset meant may bring the model
    return {};
  }
  const std::vector<std::string> given = parsed.given_models();
  const std::string brought = models::model_of(preset);
  if (given.empty() || given == std::vector{brought}) return preset;
  if (given.size() == 1) {
    problems.at(parsed.origins["preset"],
                fmt::format("the preset {} is for {}, but the experiment has {} ({}); take away one of them", name,
                            brought, given[0], parsed.origins[given[0]]));
    parsed.unusable.insert({given[0], brought});
  }
  preset.GetReflection()->ClearField(&preset, Experiment::descriptor()->FindFieldByName(brought));
  return preset;
}

// Puts the model's block into parsed.experiment. Several models are a problem: then none is put there, but what is
// wrong inside their blocks is said as well.
void choose_model(Parsed& parsed, const std::string& path, Problems& problems) {
  const std::vector<std::string> given = parsed.given_models();
  if (given.size() == 1) parsed.experiment.MergeFrom(parsed.models[given[0]]);
  if (given.size() < 2) return;
  LoadedExperiment loaded;
  loaded.source_path = path;
  loaded.origins = parsed.origins;
  const Checker check(loaded, parsed.unusable, parsed.complete, problems);
  std::vector<std::string> placed;
  for (const std::string& name : given) placed.push_back(fmt::format("{} ({})", name, where(loaded, name)));
  check.fail({given.rbegin(), given.rend()},
             fmt::format("{} and {} are {} given; keep one of them", fmt::join(placed.begin(), placed.end() - 1, ", "),
                         placed.back(), given.size() == 2 ? "both" : "all"));
  for (const std::string& name : given) {
    loaded.experiment = default_experiment(name);
    merge_over(loaded.experiment, parsed.models[name]);
    check_model(check);
  }
  parsed.unusable.insert("model");
}

void add_preset_origins(const Experiment& preset, const std::string& name,
                        std::map<std::string, std::string>& origins) {
  for_each_set_field(preset, [&](const std::string& path, const pb::Message&, const pb::FieldDescriptor&) {
    origins.emplace(path, "preset " + name);
  });
}

void make_path_absolute(Parsed& parsed, const std::string& config_path) {
  if (!parsed.experiment.data().has_path()) return;
  const bool from_override = parsed.origins["data.path"].rfind("--set ", 0) == 0;
  const fs::path folder = from_override ? fs::path() : fs::path(config_path).parent_path();
  const fs::path absolute = fs::absolute(folder / parsed.experiment.data().path()).lexically_normal();
  parsed.experiment.mutable_data()->set_path(absolute.string());
}

std::string default_name(const std::string& path) {
  const std::string file = fs::path(path).filename().string(), ending = ".txtpb";
  const bool has_ending =
      file.size() > ending.size() && file.compare(file.size() - ending.size(), ending.size(), ending) == 0;
  return has_ending ? file.substr(0, file.size() - ending.size()) : file;
}

void require_every_value(const Experiment& experiment, const Parsed& parsed, Problems& problems) {
  const std::string reason =
      " is missing; a run directory's configuration holds every value, because defaults may change";
  if (!experiment.has_name()) problems.at_line(1, "name" + reason);
  std::string missing_block;
  const Experiment defaults = defaults_for(experiment);
  for_each_set_field(defaults, [&](const std::string& path, const pb::Message&, const pb::FieldDescriptor& field) {
    const bool said = !missing_block.empty() && path.rfind(missing_block + ".", 0) == 0;
    if (said || find_field(experiment, path).field != nullptr || parsed.unusable.count(path) != 0) return;
    if (field.message_type() != nullptr) missing_block = path;
    const size_t dot = path.rfind('.');
    const auto block = parsed.origins.find(dot == std::string::npos ? "" : path.substr(0, dot));
    problems.at(block != parsed.origins.end() ? block->second : problems.path() + ":1", path + reason);
  });
}

}  // namespace

LoadedExperiment load_experiment(const std::string& path, const std::vector<std::string>& overrides) {
  const std::string text = read_text_file(path);
  require_proto_message(text, path, kMessage);
  Problems problems(path);
  Parsed parsed = parse_text(text, problems);
  for (const std::string& override_text : overrides) apply_override(override_text, parsed, problems);
  clear_empty_texts(parsed);
  make_path_absolute(parsed, path);

  const Experiment preset = preset_of(parsed, problems);
  choose_model(parsed, path, problems);
  Experiment stated = preset;
  merge_over(stated, parsed.experiment);
  if (!stated.has_name()) stated.set_name(default_name(path));
  const Experiment defaults = defaults_for(stated);
  LoadedExperiment loaded;
  loaded.source_path = path;
  loaded.experiment = defaults;
  merge_over(loaded.experiment, stated);
  loaded.origins = parsed.origins;
  add_preset_origins(preset, parsed.experiment.preset(), loaded.origins);

  check_experiment(loaded, parsed.unusable, parsed.complete, problems);
  problems.throw_if_any(ExitCode::kBadConfig);
  loaded.notes = ineffective_settings(loaded, defaults);
  return loaded;
}

namespace {

Experiment parse_checked(const std::string& text, const std::string& path, bool every_value) {
  const std::string checked = checked_text(text, path);
  require_proto_message(checked, path, kMessage);
  Problems problems(path);
  Parsed parsed = parse_text(checked, problems);
  clear_empty_texts(parsed);
  choose_model(parsed, path, problems);
  LoadedExperiment loaded;
  loaded.source_path = path;
  loaded.experiment = defaults_for(parsed.experiment);
  merge_over(loaded.experiment, parsed.experiment);
  loaded.origins = parsed.origins;
  if (every_value && parsed.complete) require_every_value(parsed.experiment, parsed, problems);
  check_experiment(loaded, parsed.unusable, parsed.complete, problems);
  problems.throw_if_any(ExitCode::kBadConfig);
  return loaded.experiment;
}

}  // namespace

Experiment parse_resolved(const std::string& text, const std::string& path) { return parse_checked(text, path, true); }

Experiment parse_stored(const std::string& text, const std::string& path) { return parse_checked(text, path, false); }

std::string where(const LoadedExperiment& loaded, const std::string& field_path) {
  auto found = loaded.origins.find(field_path);
  if (found == loaded.origins.end() && !field_path.empty() && field_path.back() == ']') {
    found = loaded.origins.find(field_path.substr(0, field_path.rfind('[')));
  }
  return found == loaded.origins.end() ? "default" : found->second;
}

void with_places(const LoadedExperiment& loaded, const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    const std::string text = error.what();
    const std::string place = where(loaded, text.substr(0, text.find(':')));
    if (error.code() != ExitCode::kBadConfig || place == "default") throw;
    throw Error(error.code(), place + ": " + text);
  }
}

}  // namespace muster::config
