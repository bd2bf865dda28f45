#include "core/config/load.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <string_view>

#include "base/error.h"
#include "base/problems.h"
#include "base/text.h"
#include "core/config/check.h"
#include "core/config/fields.h"
#include "core/config/parse.h"
#include "core/config/stored.h"
#include "core/config/text_format.h"
#include "core/models/spec.h"

namespace muster::embedded {
extern const std::string_view defaults_txtpb;
// By name: every file of core/config/presets/.
extern const std::map<std::string, std::string_view>& presets();
}  // namespace muster::embedded

namespace muster::config {

namespace fs = std::filesystem;
namespace pb = google::protobuf;

namespace {

// A command line takes a value back by empty text.
void clear_empty_texts(Parsed& parsed) {
  for (const char* const path : {"name", "preset", "data.path", "data.split.test_group"}) {
    const FieldAt at = find_field(parsed.experiment, path);
    if (at.field == nullptr || !at.message->GetReflection()->GetString(*at.message, at.field).empty()) continue;
    at.message->GetReflection()->ClearField(const_cast<pb::Message*>(at.message), at.field);
    parsed.origins.erase(path);
  }
}

// The preset that `parsed` names, without a model other than the one that it has; empty when it names none.
Experiment preset_of(Parsed& parsed, Problems& problems) {
  const std::string name = parsed.experiment.preset();
  if (name.empty() || parsed.unusable.count("preset") != 0) return {};
  Experiment preset;
  try {
    if (!pb::TextFormat::ParseFromString(preset_text(name), &preset))
      throw Error(ExitCode::kInternal, fmt::format("the built-in preset {} cannot be read", name));
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

void make_paths_absolute(Parsed& parsed, const std::string& config_path) {
  const auto absolute = [&](const std::string& path, const std::string& field) {
    const bool from_override = parsed.origins[field].rfind("--set ", 0) == 0;
    const fs::path folder = from_override ? fs::path() : fs::path(config_path).parent_path();
    return fs::absolute(folder / path).lexically_normal().string();
  };
  if (parsed.experiment.data().has_path())
    parsed.experiment.mutable_data()->set_path(absolute(parsed.experiment.data().path(), "data.path"));
  for (int i = 0; i < parsed.experiment.encoders_size(); ++i)
    if (auto& encoder = *parsed.experiment.mutable_encoders(i); !encoder.path().empty())
      encoder.set_path(absolute(encoder.path(), fmt::format("encoders[{}].path", i)));
}

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& [name, text] : embedded::presets()) names.push_back(name);
  return names;
}

std::string preset_text(const std::string& name) {
  const auto found = embedded::presets().find(name);
  if (found != embedded::presets().end()) return std::string(found->second);
  const std::vector<std::string> names = preset_names();
  throw Error(ExitCode::kBadConfig,
              fmt::format("there is no preset \"{}\"; {}Presets: {}", name, did_you_mean(name, names), either(names)));
}

namespace {

const Parsed& all_defaults() {
  static const Parsed defaults = [] {
    Problems problems("defaults.txtpb");
    Parsed parsed = parse_text(std::string(embedded::defaults_txtpb), problems);
    problems.throw_if_any(ExitCode::kInternal);
    return parsed;
  }();
  return defaults;
}

void complete_encoders(Experiment& experiment) {
  for (Encoder& encoder : *experiment.mutable_encoders()) {
    const Encoder given = encoder;
    encoder = all_defaults().experiment.encoders(0);
    merge_over(encoder, given);
  }
}

}  // namespace

Experiment default_experiment(const std::string& model) {
  const Parsed& defaults = all_defaults();
  Experiment experiment = defaults.experiment;
  experiment.clear_encoders();  // there are those that an experiment names
  if (const auto block = defaults.models.find(model); block != defaults.models.end())
    experiment.MergeFrom(block->second);
  return experiment;
}

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
  require_proto_message(text, path, "muster.config.Experiment");
  Problems problems(path);
  Parsed parsed = parse_text(text, problems, earlier != nullptr);
  for (const std::string& override_text : overrides) apply_override(override_text, parsed, problems);
  clear_empty_texts(parsed);
  make_paths_absolute(parsed, path);

  const Experiment preset = earlier ? Experiment() : preset_of(parsed, problems);
  choose_model(parsed, path, problems);
  Experiment stated = preset;
  merge_over(stated, parsed.experiment);
  if (const fs::path file(path); !stated.has_name())
    stated.set_name((file.extension() == ".txtpb" ? file.stem() : file.filename()).string());
  const Experiment defaults =
      earlier ? defaults_of_version(stated, results_version_of(text, path), *earlier) : defaults_for(stated);
  LoadedExperiment loaded;
  loaded.source_path = path;
  loaded.experiment = defaults;
  merge_over(loaded.experiment, stated);
  complete_encoders(loaded.experiment);
  loaded.origins = parsed.origins;
  for (const std::string& set : set_paths(preset)) loaded.origins.emplace(set, "preset " + parsed.experiment.preset());

  check_experiment(loaded, parsed.unusable, parsed.complete, problems);
  problems.throw_if_any(ExitCode::kBadConfig);
  Experiment unchanged = defaults;
  for (int i = 0; i < loaded.experiment.encoders_size(); ++i)
    *unchanged.add_encoders() = all_defaults().experiment.encoders(0);
  loaded.notes = ineffective_settings(loaded, unchanged);
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
    if (error.code() != ExitCode::kBadConfig) throw;
    std::vector<std::string> lines;
    std::istringstream text(error.what());
    bool found = false;
    for (std::string line; std::getline(text, line); lines.push_back(line)) {
      const size_t start = std::min(line.find_first_not_of(' '), line.size());
      const std::string place = where(loaded, line.substr(start, line.find(':') - start));
      if (place == "default") continue;
      line.insert(start, place + ": ");
      found = true;
    }
    if (!found) throw;
    throw Error(error.code(), join(lines, "\n"));
  }
}

}  // namespace muster::config
