#include "core/config/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "core/config/fields.h"
#include "core/config/resolved_text.h"
#include "core/metrics/metrics.h"
#include "core/models/spec.h"

namespace muster::config {

namespace {

constexpr uint32_t kLargestBatch = 1 << 24;

// Of a place: how likely the mistake is there.
int suspicion(const std::string& place) {
  if (place == "default") return 0;
  if (place.rfind("preset ", 0) == 0) return 1;
  return place.rfind("--set ", 0) == 0 ? 3 : 2;
}

void check_name(const Checker& check) {
  const std::string& name = check.experiment().name();
  const bool is_folder_name = name != "." && name != ".." && name.find_first_of("/\n\r\t") == std::string::npos;
  if (!is_folder_name || name.size() > 200)
    check.fail({"name"},
               fmt::format("name must be usable as the name of a folder (no \"/\", at most 200 bytes), not {}",
                           check.value("name")));
}

// The models that can learn `task` instead of `spec`, for a message.
std::string others_for(data::Task task, const models::ModelSpec& spec) {
  std::vector<std::string> names;
  for (const models::ModelSpec* other : models::all_models())
    if (other->learns(task)) names.push_back(other->name);
  return names.empty() ? "another model" : fmt::format("{} instead of {}", either(names), spec.name);
}

// What is planted fits the kind. The names are those of core/data/synthetic.h, which refuses others as well.
void check_signal(const Checker& check, const Synthetic& synthetic) {
  const bool classification = synthetic.kind() == Synthetic::CLASSIFICATION;
  std::vector<std::string> names{"audio", "vision"};
  if (!classification) names.push_back("text");
  if (!classification && synthetic.text_encoders() > 1) names.push_back("text_b");
  if (!classification && synthetic.text_encoders() > 2) names.push_back("text_c");
  if (classification && synthetic.raw()) names = {"audio", "text"};
  for (int i = 0; i < synthetic.without_signal_size(); ++i) {
    const std::string& name = synthetic.without_signal(i);
    if (check.is_unusable("data.synthetic.without_signal")) break;
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    check.fail({fmt::format("data.synthetic.without_signal[{}]", i)},
               fmt::format("data.synthetic.without_signal names \"{}\", but this data has {}", name, either(names)));
  }
  if (!classification && synthetic.agreement() != 0)
    check.fail({"data.synthetic.agreement", "data.synthetic.kind"},
               fmt::format("data.synthetic.agreement is {}, but data.synthetic.kind is REGRESSION; it is for "
                           "CLASSIFICATION",
                           check.value("data.synthetic.agreement")));
  if (!classification && synthetic.raw())
    check.fail({"data.synthetic.raw", "data.synthetic.kind"},
               "data.synthetic.raw is true, but data.synthetic.kind is REGRESSION; it is for CLASSIFICATION");
  if (classification && synthetic.raw() && synthetic.agreement() != 0)
    check.fail({"data.synthetic.agreement", "data.synthetic.raw"},
               fmt::format("data.synthetic.agreement is {}, but raw data (data.synthetic.raw) has none; leave it at 0",
                           check.value("data.synthetic.agreement")));
  if (classification && synthetic.text_encoders() != 1)
    check.fail(
        {"data.synthetic.text_encoders", "data.synthetic.kind"},
        fmt::format("data.synthetic.text_encoders is {}, but data.synthetic.kind is CLASSIFICATION, which has no "
                    "text; it is for REGRESSION",
                    check.value("data.synthetic.text_encoders")));
}

void check_synthetic(const Checker& check, const models::ModelSpec* model) {
  const Synthetic& synthetic = check.experiment().data().synthetic();
  if (!synthetic.has_kind())
    check.fail_absent("data.synthetic.kind", "data.synthetic.kind is missing; valid: CLASSIFICATION, REGRESSION");
  check.count("data.synthetic.samples", 10000000);
  check.require(synthetic.noise() >= 0 && synthetic.noise() <= 1000, "data.synthetic.noise", "from 0 to 1000");
  check.require(synthetic.agreement() >= 0 && synthetic.agreement() <= 1, "data.synthetic.agreement", "from 0 to 1");
  check.count("data.synthetic.text_encoders", 3);
  if (!synthetic.has_kind()) return;
  check_signal(check, synthetic);
  const bool regression = synthetic.kind() == Synthetic::REGRESSION;
  const data::Task task = regression ? data::Task::kRegression : data::Task::kClassification;
  if (model != nullptr && !model->learns(task))
    check.fail({"data.synthetic.kind", model->name},
               fmt::format("data.synthetic.kind is {}, but {} only {}; use {}, or {}",
                           regression ? "REGRESSION" : "CLASSIFICATION", model->name,
                           regression ? "classifies" : "does regression", regression ? "CLASSIFICATION" : "REGRESSION",
                           others_for(task, *model)));
  if (regression && check.experiment().training().sampling() == Training::CLASS_BALANCED)
    check.fail({"training.sampling", "data.synthetic.kind"},
               "training.sampling is CLASS_BALANCED, but data.synthetic.kind is REGRESSION, which has no classes; use "
               "SHUFFLE");
}

void check_modalities(const Checker& check, const models::ModelSpec* model) {
  const auto& names = check.experiment().data().modalities();
  if (names.empty() || check.is_unusable("data.modalities")) return;
  std::set<std::string> seen;
  for (int i = 0; i < names.size(); ++i) {
    const std::string path = fmt::format("data.modalities[{}]", i);
    if (names[i].empty() || names[i] == "." || names[i].find('/') != std::string::npos)
      check.fail({path}, fmt::format("data.modalities holds \"{}\", which cannot be the name of a modality", names[i]));
    else if (!seen.insert(names[i]).second)
      check.fail({path}, fmt::format("data.modalities names \"{}\" twice", names[i]));
  }
  if (model == nullptr) return;
  const std::string problem = model->modality_problem({names.begin(), names.end()});
  if (!problem.empty()) check.fail({"data.modalities", model->name}, "data.modalities " + problem);
}

void check_split(const Checker& check) {
  const Split& split = check.experiment().data().split();
  check.require(split.folds() >= 2, "data.split.folds", "at least 2");
  if (split.kind() == Split::K_FOLD && split.folds() >= 2 && split.fold() >= split.folds())
    check.fail(
        {"data.split.fold", "data.split.folds"},
        fmt::format("data.split.fold counts from 0, so with data.split.folds = {} it must be from 0 to {}, not {}",
                    split.folds(), split.folds() - 1, split.fold()));
  check.share("data.split.validation_share");
}

void check_data(const Checker& check, const models::ModelSpec* model) {
  const Data& data = check.experiment().data();
  if (data.has_path() && data.has_synthetic()) {
    check.fail({"data.synthetic", "data.path"},
               fmt::format("data.synthetic ({}) and data.path ({}) are both given; keep one of them",
                           check.place("data.synthetic"), check.place("data.path")));
  } else if (!data.has_path() && !data.has_synthetic() && !check.is_unusable("data.path")) {
    check.fail_absent("data.synthetic", "no data: give data.path (a dataset file) or data.synthetic (built-in data)");
  }
  if (data.has_synthetic()) check_synthetic(check, model);
  check_modalities(check, model);
  check_split(check);
  check.not_negative("data.clip_standardized");
  check.share("data.augment.modality_dropout");
  if (data.augment().modality_dropout() > 0 && model != nullptr && model->modalities.every_sample_needs_all)
    check.fail({"data.augment.modality_dropout", model->name},
               fmt::format("data.augment.modality_dropout is {}, but {} needs every modality of a sample; set it to 0",
                           check.value("data.augment.modality_dropout"), model->name));
}

void check_optimizer(const Checker& all) {
  const Checker check = all.in("optimizer");
  check.not_negative("learning_rate");
  check.share("beta1");
  check.share("beta2");
  check.positive("epsilon");
  check.not_negative("weight_decay");
  check.not_negative("clip_norm");
  const double final_ratio = check.number("final_lr_ratio");
  check.require(final_ratio >= 0 && final_ratio <= 1, "final_lr_ratio", "from 0 to 1");
  check.positive("step_factor");
  check.require(check.number("step_epochs") >= 1, "step_epochs", "at least 1");
  const uint64_t last = all.experiment().training().max_steps();
  if (last > 0 && all.experiment().optimizer().warmup_steps() >= last)
    all.fail({"optimizer.warmup_steps", "training.max_steps"},
             fmt::format("optimizer.warmup_steps ({}) must be less than training.max_steps ({}), or the learning rate "
                         "never reaches its peak",
                         all.value("optimizer.warmup_steps"), all.value("training.max_steps")));
}

void check_training(const Checker& check) {
  const Training& training = check.experiment().training();
  if (training.epochs() == 0 && training.max_steps() == 0)
    check.fail({"training.epochs", "training.max_steps"},
               "training.epochs and training.max_steps are both 0, so training would never end; give one of them");
  check.count("training.batch_size", kLargestBatch);
  check.require(training.microbatches() <= kLargestBatch, "training.microbatches",
                fmt::format("from 0 to {}", kLargestBatch));
  check.require(training.max_skipped_in_a_row() >= 1, "training.max_skipped_in_a_row", "at least 1");
  check.require(training.threads() <= 4096, "training.threads", "from 0 (OMP_NUM_THREADS) to 4096");
  check.require(training.log_every_steps() >= 1, "training.log_every_steps", "at least 1");
  if (training.reproducible() && training.threads() > 1)
    check.fail({"training.threads", "training.reproducible"},
               fmt::format("training.reproducible needs one thread per rank (training.threads = 1, or 0), not {}: sums "
                           "shared among threads round differently; use more ranks instead",
                           check.value("training.threads")));
}

// The tasks that the experiment may turn out to have; its data may not be opened yet.
std::vector<data::Task> possible_tasks(const Experiment& experiment, const models::ModelSpec* model) {
  std::vector<data::Task> tasks;
  const Synthetic::Kind kind = experiment.data().synthetic().kind();
  for (const auto& [task, its_kind] : {std::pair{data::Task::kRegression, Synthetic::REGRESSION},
                                       std::pair{data::Task::kClassification, Synthetic::CLASSIFICATION},
                                       std::pair{data::Task::kMultilabel, Synthetic::KIND_UNSPECIFIED}})
    if ((model == nullptr || model->learns(task)) && (kind == Synthetic::KIND_UNSPECIFIED || kind == its_kind))
      tasks.push_back(task);
  return tasks.empty() ? model->tasks : tasks;
}

void check_select_by(const Checker& check, const models::ModelSpec* model) {
  const std::string& metric = check.experiment().evaluation().select_by();
  if (metric.empty()) return;
  const std::vector<data::Task> tasks = possible_tasks(check.experiment(), model);
  std::vector<std::string> names;
  for (const data::Task task : tasks)
    for (const std::string& name : metrics::selectable_names(task))
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  if (std::find(names.begin(), names.end(), metric) != names.end()) return;
  const std::string of_task = tasks.size() != 1 ? "" : fmt::format(" for {}", name_of(tasks[0]));
  check.fail({"evaluation.select_by"}, fmt::format("evaluation.select_by: there is no metric \"{}\"{}; {}Valid: {}",
                                                   metric, of_task, did_you_mean(metric, names), either(names)));
}

void check_evaluation(const Checker& check, const models::ModelSpec* model) {
  const Evaluation& evaluation = check.experiment().evaluation();
  check.count("evaluation.batch_size", kLargestBatch);
  check.not_negative("evaluation.min_improvement");
  if (evaluation.patience() > 0 && evaluation.every_epochs() == 0 && evaluation.every_steps() == 0)
    check.fail({"evaluation.patience", "evaluation.every_epochs", "evaluation.every_steps"},
               "evaluation.patience needs evaluations during training, but every_epochs and every_steps are both 0");
  check_select_by(check, model);
}

void check_encoders(const Checker& check) {
  std::map<std::string, std::string> first;  // of each modality
  for (int i = 0; i < check.experiment().encoders_size(); ++i) {
    const Encoder& encoder = check.experiment().encoders(i);
    const std::string block = fmt::format("encoders[{}]", i);
    const Checker here = check.in(block);
    if (encoder.modality().empty())
      check.fail_absent(block + ".modality", fmt::format("{}.modality: name the modality that it encodes", block));
    else if (encoder.modality() == "." || encoder.modality() == ".." ||
             encoder.modality().find('/') != std::string::npos)
      here.fail({"modality"}, fmt::format("{}.modality: a run keeps a folder of this name, which \"{}\" cannot be",
                                          block, encoder.modality()));
    else if (const auto [other, is_first] = first.emplace(encoder.modality(), block); !is_first)
      here.fail({"modality"}, fmt::format("{}.modality: \"{}\" has an encoder already, {}; keep one of them", block,
                                          encoder.modality(), other->second));
    if (encoder.path().empty())
      check.fail_absent(block + ".path",
                        fmt::format("{}.path: name the encoder's folder (config.json and model.safetensors)", block));
    here.positive("learning_rate_scale");
    here.require(encoder.layer_decay() > 0 && encoder.layer_decay() <= 1, "layer_decay", "more than 0 and at most 1");
    here.not_negative("max_seconds");
    const auto refuse_if_frozen = [&](bool set, const char* field) {
      if (set && encoder.train() == Encoder::FROZEN)
        here.fail(
            {field, "train"},
            fmt::format("{0}.{1} is {2}, but {0}.train is FROZEN, and a frozen encoder computes in training what it "
                        "computes in evaluation; remove {1}, or train the encoder",
                        block, field, here.value(field)));
    };
    for (const char* const rate :
         {"hidden_dropout", "attention_dropout", "activation_dropout", "feature_projection_dropout", "layerdrop"}) {
      here.share(rate);
      refuse_if_frozen(here.number(rate) > 0, rate);
    }
    refuse_if_frozen(encoder.spec_augment(), "spec_augment");
    if (encoder.layer() > 0 && encoder.weighted_layers())
      here.fail(
          {"layer", "weighted_layers"},
          fmt::format("{0}: either layer, one layer's output, or weighted_layers, a sum of all; not both", block));
  }
}

void check_checkpoints_and_deadlines(const Checker& check) {
  check.not_negative("checkpoints.every_minutes");
  check.require(check.experiment().checkpoints().keep_last() >= 1, "checkpoints.keep_last", "at least 1");
  for (const char* const phase : {"setup", "step", "save", "evaluation"}) check.in("deadlines").not_negative(phase);
}

}  // namespace

Checker Checker::in(const std::string& block) const {
  Checker checker = *this;
  checker.block_ = full(block);
  return checker;
}

std::string Checker::value(const std::string& path) const { return value_text(experiment(), full(path), "not set"); }

double Checker::number(const std::string& path) const {
  const FieldAt at = find_field(experiment(), full(path));
  if (at.field == nullptr) return 0;
  const auto& reflection = *at.message->GetReflection();
  switch (at.field->cpp_type()) {
    case google::protobuf::FieldDescriptor::CPPTYPE_UINT32:
      return reflection.GetUInt32(*at.message, at.field);
    case google::protobuf::FieldDescriptor::CPPTYPE_UINT64:
      return static_cast<double>(reflection.GetUInt64(*at.message, at.field));
    default:
      return reflection.GetDouble(*at.message, at.field);
  }
}

void Checker::fail(const std::vector<std::string>& paths, const std::string& message) const {
  std::string most_likely;
  for (const std::string& path : paths) {
    if (is_unusable(path)) return;
    const std::string found = place(path);
    if (most_likely.empty() || suspicion(found) > suspicion(most_likely)) most_likely = found;
  }
  problems_.at(most_likely, message);
}

void Checker::fail_absent(const std::string& path, const std::string& message) const {
  if (!complete_ || is_unusable(path)) return;
  std::string block = full(path);
  while (!block.empty()) {
    const size_t dot = block.rfind('.');
    block = dot == std::string::npos ? "" : block.substr(0, dot);
    const std::string found = where(loaded_, block);
    if (found != "default") return problems_.at(found, message);
  }
  problems_.at_line(1, message);
}

void Checker::require(bool right, const std::string& path, const std::string& wanted) const {
  if (!right) fail({path}, fmt::format("{} must be {}, not {}", full(path), wanted, value(path)));
}

void Checker::share(const std::string& path) const {
  const double share = number(path);
  require(share >= 0 && share < 1, path, "at least 0 and less than 1");
}

void Checker::positive(const std::string& path) const {
  require(std::isfinite(number(path)) && number(path) > 0, path, "a positive number");
}

void Checker::not_negative(const std::string& path) const {
  require(std::isfinite(number(path)) && number(path) >= 0, path, "0 or a positive number");
}

void Checker::count(const std::string& path, uint32_t largest) const {
  require(number(path) >= 1 && number(path) <= largest, path, fmt::format("from 1 to {}", largest));
}

void check_model(const Checker& check) {
  const std::string name = models::model_of(check.experiment());
  const Checker block = check.in(name);
  const double classes = block.number("classes");
  block.require(classes != 1 && classes <= kWidest, "classes",
                fmt::format("0 (as many as the data has) or from 2 to {}", kWidest));
  const models::ModelSpec* model = models::find_model(name);
  if (model != nullptr && model->check != nullptr) model->check(block);
}

void check_experiment(const LoadedExperiment& loaded, const std::set<std::string>& unusable, bool complete,
                      Problems& problems) {
  const Checker check(loaded, unusable, complete, problems);
  const std::string name = models::model_of(loaded.experiment);
  const models::ModelSpec* model = models::find_model(name);
  check_name(check);
  check_data(check, model);
  if (!name.empty()) {
    check_model(check);
  } else if (!check.is_unusable("model")) {
    std::vector<std::string> blocks;
    for (const std::string& block : models::model_blocks()) blocks.push_back(block + " {}");
    check.fail_absent(models::model_blocks()[0], fmt::format("no model: add {}, or name a preset", either(blocks)));
  }
  check_encoders(check);
  check_optimizer(check);
  check_training(check);
  check_evaluation(check, model);
  check_checkpoints_and_deadlines(check);
}

std::vector<std::string> ineffective_settings(const LoadedExperiment& loaded, const Experiment& defaults) {
  const Experiment& experiment = loaded.experiment;
  std::vector<std::string> notes;
  const auto unless = [&](bool effective, const std::string& path, const std::string& condition) {
    const std::string place = where(loaded, path), value = value_text(experiment, path);
    if (effective || place == "default" || place.rfind("preset ", 0) == 0) return;
    if (value.empty() || value == value_text(defaults, path)) return;
    notes.push_back(fmt::format("{}: {} = {} has no effect: it is used only with {}", place, path, value, condition));
  };
  const Split& split = experiment.data().split();
  const bool one_group = split.kind() == Split::LEAVE_ONE_GROUP_OUT, k_fold = split.kind() == Split::K_FOLD;
  unless(one_group, "data.split.test_group", "data.split.kind: LEAVE_ONE_GROUP_OUT");
  unless(k_fold || (one_group && !split.has_test_group()), "data.split.fold",
         one_group ? "no data.split.test_group" : "data.split.kind: LEAVE_ONE_GROUP_OUT or K_FOLD");
  unless(k_fold, "data.split.folds", "data.split.kind: K_FOLD");
  unless(one_group || k_fold, "data.split.validation_share", "data.split.kind: LEAVE_ONE_GROUP_OUT or K_FOLD");
  unless(experiment.data().standardize(), "data.clip_standardized", "data.standardize: true");
  unless(experiment.data().augment().modality_dropout() > 0, "data.augment.modalities",
         "data.augment.modality_dropout above 0");
  unless(one_group || k_fold, "data.split.validation_by_group", "data.split.kind: LEAVE_ONE_GROUP_OUT or K_FOLD");
  if (const models::ModelSpec* model = models::find_model(models::model_of(experiment)))
    for (const auto& [field, other, value] : model->conditional_fields)
      unless(value_text(experiment, join_path(model->name, other)) == value, join_path(model->name, field),
             fmt::format("{}.{}: {}", model->name, other, value));
  for (int i = 0; i < experiment.encoders_size(); ++i) {
    const Encoder::Train train = experiment.encoders(i).train();
    const std::string block = fmt::format("encoders[{}]", i);
    // Not refused: older runs have it, and continue.
    unless(train == Encoder::TRANSFORMER, join_path(block, "top_layers"),
           fmt::format("{}.train: TRANSFORMER, and here it is {}", block,
                       train == Encoder::ALL ? "ALL, which trains all layers" : "FROZEN, which trains none"));
    for (const char* const field : {"learning_rate_scale", "layer_decay"})
      unless(train != Encoder::FROZEN, join_path(block, field),
             fmt::format("{}.train: TRANSFORMER or ALL, and here it is FROZEN", block));
  }
  const Optimizer& optimizer = experiment.optimizer();
  unless(optimizer.schedule() == Optimizer::COSINE, "optimizer.final_lr_ratio", "optimizer.schedule: COSINE");
  unless(optimizer.schedule() == Optimizer::STEP, "optimizer.step_factor", "optimizer.schedule: STEP");
  unless(optimizer.schedule() == Optimizer::STEP, "optimizer.step_epochs", "optimizer.schedule: STEP");
  unless(experiment.training().non_finite() == Training::SKIP_STEP, "training.max_skipped_in_a_row",
         "training.non_finite: SKIP_STEP");
  return notes;
}

}  // namespace muster::config
