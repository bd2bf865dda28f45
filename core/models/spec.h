#pragma once

#include <cstddef>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/config/experiment.pb.h"
#include "core/data/dataset.h"

namespace muster {
class Problems;
}
namespace muster::config {
class Checker;
}

// What the rest of the program knows of a model. Each model's source file registers one ModelSpec; nothing outside
// core/models/ names a model. This header and its source do without LibTorch, so that core/config can use them.
namespace muster::models {

class Model;

// What a model must know of the data.
struct DataShape {
  std::vector<std::string> modalities;  // in the experiment's order
  std::vector<int64_t> dims;
  int64_t outputs = 1;                    // classes, or 1 for regression
  std::vector<data::ModalityKind> kinds;  // empty: features only
  data::Task task = data::Task::kRegression;
};

// Which modalities a model takes.
struct ModalityPolicy {
  // Taken where data.modalities is empty: those of them that the file has; all of them where `fewest` equals `most`.
  std::vector<std::string> defaults{"text", "audio", "vision"};
  size_t fewest = 1;
  size_t most = std::numeric_limits<size_t>::max();
  bool every_sample_needs_all = false;  // otherwise a sample needs at least one
  // What is wrong with these names, as the end of a sentence that begins with "data.modalities"; "" if nothing.
  std::string (*objection)(const std::vector<std::string>& names) = nullptr;
};

// A field of the model's block that has an effect only while another one (an enum) has a certain value.
struct ConditionalField {
  std::string field, other, value;
};

struct ModelSpec {
  std::string name;   // of its block: a member of `oneof model` in experiment.proto
  std::string title;  // in text for people
  std::vector<data::Task> tasks{data::Task::kRegression, data::Task::kClassification, data::Task::kMultilabel};
  ModalityPolicy modalities;
  // Adds a problem for each value of the block that no data could make right; paths are relative to the block. Types,
  // and `classes` if the block has it, are checked already.
  void (*check)(const config::Checker& block) = nullptr;
  // Adds a problem, which begins with a field's path and a colon, for each value of the block that is wrong for data of
  // this shape. Modalities that the data lacks are a problem already, and not part of `shape`.
  void (*check_data)(const config::Experiment& experiment, const DataShape& shape, Problems& problems) = nullptr;
  std::vector<ConditionalField> conditional_fields;
  // The model with its starting weights. `shape` agrees with `tasks` and `modalities`.
  std::unique_ptr<Model> (*build)(const config::Experiment& experiment, const DataShape& shape) = nullptr;
  // What selects the best weights, where that is not the task's usual metric.
  std::map<data::Task, std::string> default_metrics;
  // What of this experiment's results has changed since results version `version` (config::kResultsVersion) and no
  // field brings back, as a noun; "" where nothing has.
  std::string (*changed_since)(const config::Experiment& experiment, uint32_t version) = nullptr;
  std::string note;  // a sentence to be printed wherever its results are; may be empty

  bool learns(data::Task task) const;
  const std::string& default_metric(data::Task task) const;
  // What is wrong with these modalities, as the end of a sentence that begins with "data.modalities"; "" if nothing.
  std::string modality_problem(const std::vector<std::string>& names) const;
};

// A static object of this type beside a model registers it.
struct RegisteredModel {
  explicit RegisteredModel(ModelSpec spec);
};

// All registered models, in the order of `oneof model`.
std::vector<const ModelSpec*> all_models();
// nullptr when no model of that name is registered.
const ModelSpec* find_model(const std::string& name);
// The model of a resolved experiment. Throws Error(kInternal) when it has none, or one that is not registered.
const ModelSpec& spec_of(const config::Experiment& experiment);

// The names of the members of `oneof model`.
std::vector<std::string> model_blocks();
// The one that `experiment` has; "" for none.
std::string model_of(const config::Experiment& experiment);

}  // namespace muster::models
