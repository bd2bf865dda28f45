#include "core/models/spec.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>

#include <algorithm>

#include "base/error.h"
#include "core/metrics/metrics.h"

namespace muster::models {

namespace {

const google::protobuf::OneofDescriptor& model_oneof() {
  return *config::Experiment::descriptor()->FindOneofByName("model");
}

std::map<std::string, ModelSpec>& registry() {
  static std::map<std::string, ModelSpec> models;
  return models;
}

// Of things that are counted: "one", "two", "3".
std::string count_text(size_t count) { return count == 1 ? "one" : count == 2 ? "two" : fmt::format("{}", count); }

}  // namespace

bool ModelSpec::learns(data::Task task) const { return std::find(tasks.begin(), tasks.end(), task) != tasks.end(); }

const std::string& ModelSpec::default_metric(data::Task task) const {
  const auto own = default_metrics.find(task);
  return own == default_metrics.end() ? metrics::default_metric(task) : own->second;
}

std::string ModelSpec::modality_problem(const std::vector<std::string>& names) const {
  const std::string has = names.size() == 1 ? "has one entry" : fmt::format("has {} entries", names.size());
  const auto [defaults, fewest, most, all, objection] = modalities;
  if (fewest == most && names.size() != most)
    return fmt::format("{}, but {} takes exactly {}: \"{}\"", has, name, count_text(most),
                       fmt::join(defaults, "\", \""));
  if (names.size() < fewest) return fmt::format("{}, but {} needs at least {}", has, name, count_text(fewest));
  if (names.size() > most) return fmt::format("{}, but {} takes at most {}", has, name, count_text(most));
  return objection == nullptr ? "" : objection(names);
}

RegisteredModel::RegisteredModel(ModelSpec spec) {
  const std::string name = spec.name;
  registry().emplace(name, std::move(spec));
}

const ModelSpec* find_model(const std::string& name) {
  const auto found = registry().find(name);
  return found == registry().end() ? nullptr : &found->second;
}

std::vector<const ModelSpec*> all_models() {
  std::vector<const ModelSpec*> all;
  for (const std::string& name : model_blocks())
    if (const ModelSpec* spec = find_model(name)) all.push_back(spec);
  return all;
}

const ModelSpec& spec_of(const config::Experiment& experiment) {
  const ModelSpec* spec = find_model(model_of(experiment));
  if (spec == nullptr)
    throw Error(ExitCode::kInternal, fmt::format("no model is registered as \"{}\"", model_of(experiment)));
  return *spec;
}

std::vector<std::string> model_blocks() {
  std::vector<std::string> names;
  for (int i = 0; i < model_oneof().field_count(); ++i) names.push_back(model_oneof().field(i)->name());
  return names;
}

std::string model_of(const config::Experiment& experiment) {
  const auto* field = experiment.GetReflection()->GetOneofFieldDescriptor(experiment, &model_oneof());
  return field == nullptr ? "" : field->name();
}

}  // namespace muster::models
