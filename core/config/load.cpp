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
#include "core/config/stored.h"
#include "core/config/text_file.h"
#include "core/models/spec.h"

namespace muster::config {

namespace fs = std::filesystem;
namespace pb = google::protobuf;

namespace {

constexpr char kMessage[] = "muster.config.Experiment";

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

}  // namespace

Experiment defaults_for(const Experiment& experiment) {
  Experiment defaults = default_experiment(models::model_of(experiment));
  if (!experiment.data().has_synthetic()) defaults.mutable_data()->clear_synthetic();
  return defaults;
}

LoadedExperiment load_experiment(const std::string& path, const std::vector<std::string>& overrides) {
  return resolve_experiment(read_text_file(path), path, overrides, nullptr);
}

LoadedExperiment resolve_experiment(const std::string& text, const std::string& path,
                                    const std::vector<std::string>& overrides,
                                    const std::vector<EarlierValue>* earlier) {
  require_proto_message(text, path, kMessage);
  Problems problems(path);
  Parsed parsed = parse_text(text, problems, earlier != nullptr);
  for (const std::string& override_text : overrides) apply_override(override_text, parsed, problems);
  clear_empty_texts(parsed);
  make_path_absolute(parsed, path);

  const Experiment preset = earlier ? Experiment() : preset_of(parsed, problems);
  choose_model(parsed, path, problems);
  Experiment stated = preset;
  merge_over(stated, parsed.experiment);
  if (!stated.has_name()) stated.set_name(default_name(path));
  const Experiment defaults =
      earlier ? defaults_of_version(stated, results_version_of(text, path), *earlier) : defaults_for(stated);
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
