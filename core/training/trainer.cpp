#include "core/training/trainer.h"

#include <cmath>
#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/batch/sampler.h"
#include "core/config/resolved_text.h"
#include "core/metrics/metrics.h"
#include "core/models/make_model.h"
#include "core/optim/adamw.h"
#include "core/optim/schedule.h"
#include "core/training/data_source.h"
#include "core/training/environment.h"
#include "core/training/evaluation.h"
#include "core/training/progress.h"
#include "core/training/results.h"
#include "core/training/run_directory.h"
#include "core/training/step.h"
#include "core/training/weights.h"

namespace muster::training {
namespace {

using distributed::SharedError;
using distributed::ExitCode;
using Clock = std::chrono::steady_clock;

batch::Sampling sampling_of(config::Training::Sampling sampling) {
  switch (sampling) {
    case config::Training::CLASS_BALANCED: return batch::Sampling::kClassBalanced;
    case config::Training::SEQUENTIAL: return batch::Sampling::kSequential;
    default: return batch::Sampling::kShuffle;
  }
}

// Runs `work`, which judges values of the config by the data. Its complaints start with a field's path: where the user set that
// field is put in front.
void with_places(const config::LoadedExperiment& loaded, const std::function<void()>& work) {
  try {
    work();
  } catch (const distributed::Error& error) {
    const std::string text = error.what();
    const std::string place = config::where(loaded, text.substr(0, text.find(':')));
    if (error.code() != ExitCode::kBadConfig || place == "default") throw;
    throw distributed::Error(error.code(), place + ": " + text);
  }
}

// One run from checked inputs to result.json.
class Trainer {
 public:
  Trainer(const config::LoadedExperiment& loaded, const TrainOptions& options, distributed::Communicator& communicator)
      : loaded_(loaded), config_(loaded.experiment), options_(options), communicator_(communicator),
        progress_(communicator.rank() == 0) {}

  void run();

 private:
  bool is_main() const { return communicator_.rank() == 0; }
  void prepare();
  std::string summary() const;
  void init_from_file();
  std::optional<double> temperature_value() const;
  void start_run_directory();
  void train_loop();
  void train_step(const std::vector<int64_t>& samples, int64_t epoch);
  void handle_non_finite(const GlobalBatchPlan& plan, int64_t epoch, double loss, double gradient_norm);
  void validate(int64_t epoch);
  void finish();
  void warn_if_nothing_learnt(const ResultColumn& result, const ResultColumn& floor) const;
  nlohmann::json progress_row(const char* kind, int64_t epoch) const;

  const config::LoadedExperiment& loaded_;
  const config::Experiment& config_;
  const TrainOptions& options_;
  distributed::Communicator& communicator_;
  Progress progress_;
  Clock::time_point started_ = Clock::now();
  int threads_ = 1;

  DataSource data_;
  data::Split split_;
  std::string data_hash_;
  std::vector<batch::FeatureMoments> moments_;
  std::unique_ptr<batch::BatchReader> reader_;
  std::unique_ptr<models::Model> model_;
  std::unique_ptr<optim::AdamW> optimizer_;
  std::unique_ptr<Step> step_;
  std::optional<RunDirectory> directory_;

  uint64_t steps_per_epoch_ = 0;
  uint64_t total_steps_ = 0;
  uint64_t steps_done_ = 0;     // batches worked on, skipped ones included: what random choices are keyed by
  uint64_t skipped_steps_ = 0;
  uint64_t skipped_in_a_row_ = 0;

  std::string select_by_;
  double best_value_ = std::numeric_limits<double>::quiet_NaN();
  uint64_t best_step_ = 0;
  int64_t best_epoch_ = 0;
  at::Tensor best_values_;  // flat copy of the parameters; undefined until the first validation
  uint32_t evaluations_without_improvement_ = 0;
  uint64_t validated_step_ = 0;
  bool stopped_early_ = false;
  std::string best_fingerprint_;
};

void Trainer::prepare() {
  threads_ = set_threads(static_cast<int>(config_.training().threads()), communicator_);
  distributed::together(communicator_, [&] {
    if (is_main() && !options_.dry_run) require_new_run_directory(options_.run_directory);
    with_places(loaded_, [&] {
      data_ = open_data(config_, "", true);
      split_ = split_data(config_, data_, true);
      model_ = models::make_model(config_, data_.shape);
    });
  });
  progress_.line("reading " + data_.dataset->source() + ": " + std::to_string(data_.index().size()) + " samples");
  require_finite_features(data_, communicator_,
                          [&](int64_t done, int64_t total) { progress_.work("checking features, sample", done, total); });
  progress_.clear();
  distributed::together(communicator_, [&] {
    if (is_main()) data_hash_ = data_.dataset->content_hash();
  });
  if (config_.data().standardize()) moments_ = fit_moments(data_, split_.train, communicator_);

  distributed::together(communicator_, [&] {
    if (!options_.init_from.empty()) init_from_file();
  });
  reader_ = std::make_unique<batch::BatchReader>(*data_.dataset, data_.modalities, moments_, model_->parameters().dtype());
  const auto& optimizer = config_.optimizer();
  optimizer_ = std::make_unique<optim::AdamW>(
      model_->parameters(), optim::AdamWOptions{optimizer.beta1(), optimizer.beta2(), optimizer.epsilon(), optimizer.weight_decay()});
  step_ = std::make_unique<Step>(*model_, *reader_, communicator_, config_.training().precision() == config::Training::BF16);

  const uint64_t batch_size = config_.training().batch_size();
  const uint64_t train_samples = split_.train.size();
  steps_per_epoch_ = config_.training().drop_last() ? train_samples / batch_size : (train_samples + batch_size - 1) / batch_size;
  if (steps_per_epoch_ == 0)
    throw SharedError(ExitCode::kBadConfig, config::where(loaded_, "training.drop_last") + ": training.drop_last leaves no batch: there are " +
                                          std::to_string(train_samples) + " training samples and batch_size is " + std::to_string(batch_size));
  const uint64_t by_epochs = steps_per_epoch_ * config_.training().epochs();
  const uint64_t limit = config_.training().max_steps();
  total_steps_ = by_epochs == 0 ? limit : limit == 0 ? by_epochs : std::min(limit, by_epochs);
  select_by_ = config_.evaluation().select_by();
  if (select_by_.empty()) select_by_ = data_.index().task == data::Task::kRegression ? "MAE" : "WA";
}

std::string Trainer::summary() const {
  std::string text = config_.name() + ": " + (config_.has_foal_net() ? "Foal-Net" : "MIAR") + ", " +
                     std::to_string(model_->parameters().count()) + " parameters; " + std::to_string(split_.train.size()) + " train, " +
                     std::to_string(split_.valid.size()) + " valid, " + std::to_string(split_.test.size()) + " test samples";
  if (data_.dropped > 0) text += " (" + std::to_string(data_.dropped) + " dropped: a modality is missing)";
  text += "; global batch " + std::to_string(config_.training().batch_size()) + " on " + std::to_string(communicator_.size()) +
          (communicator_.size() == 1 ? " rank, " : " ranks, ") + std::to_string(threads_) + (threads_ == 1 ? " thread" : " threads") +
          " each; " + std::to_string(total_steps_) + " steps";
  const int cores = usable_cores();
  if (communicator_.size() == 1 && threads_ < cores)
    text += "\nthis run uses " + std::to_string(threads_) + " of " + std::to_string(cores) + " cores; for all: muster launch -n " +
            std::to_string(cores) + " train ... (the same model, sooner)";
  for (const auto& note : loaded_.notes) text += "\nnote: " + note;
  return text;
}

void Trainer::init_from_file() {
  const Weights weights = read_weights(options_.init_from, data_.shape);
  if (data_.index().task == data::Task::kClassification) require_same_classes(weights, data_.index(), options_.init_from);
  if (weights.moments.empty() == config_.data().standardize())
    throw distributed::Error(ExitCode::kBadData, options_.init_from + ": these weights were trained " +
                                                     (weights.moments.empty() ? "without" : "with") +
                                                     " data.standardize, this experiment is the other way; the weights would see features "
                                                     "of another scale");
  model_->parameters().load(weights.parameters, options_.init_from);
}

// Foal-Net's learnt temperature, where it has one.
std::optional<double> Trainer::temperature_value() const {
  for (const auto& spec : model_->parameters().specs())
    if (spec.name == "avel.temperature") return model_->parameters()[spec.name].item<double>();
  return std::nullopt;
}

void Trainer::start_run_directory() {
  nlohmann::json environment = describe_environment(communicator_, options_.command_line, threads_);
  environment["data"] = {{"source", data_.dataset->source()}, {"sha256", data_hash_}, {"samples", data_.index().size()},
                         {"train", split_.train.size()}, {"valid", split_.valid.size()}, {"test", split_.test.size()},
                         {"dropped", data_.dropped}};
  if (!options_.init_from.empty()) environment["init_from"] = options_.init_from;
  distributed::together(communicator_, [&] {
    if (is_main()) directory_.emplace(options_.run_directory, config::resolved_text(config_), environment);
  });
}

nlohmann::json Trainer::progress_row(const char* kind, int64_t epoch) const {
  return {{"kind", kind}, {"step", steps_done_}, {"epoch", epoch}};
}

void Trainer::handle_non_finite(const GlobalBatchPlan& plan, int64_t epoch, double loss, double gradient_norm) {
  const std::string found = step_->diagnose(plan, config_.seed(), static_cast<uint32_t>(steps_done_));
  const std::string head = "step " + std::to_string(steps_done_ + 1) + " (epoch " + std::to_string(epoch) + "): loss " + std::to_string(loss) +
                           ", gradient norm " + std::to_string(gradient_norm);
  if (config_.training().non_finite() != config::Training::SKIP_STEP)
    throw SharedError(ExitCode::kInternal, "training became non-finite at " + head + ":\n" + found +
                                         "Lower optimizer.learning_rate, set optimizer.clip_norm or data.standardize, or allow "
                                         "training.non_finite: SKIP_STEP.");
  ++skipped_steps_;
  ++skipped_in_a_row_;
  progress_.line("skipped " + head + "\n" + found);
  if (is_main()) {
    auto row = progress_row("skipped", epoch);
    row["found"] = found;
    directory_->append_metrics(row);
  }
  if (skipped_in_a_row_ > config_.training().max_skipped_in_a_row())
    throw SharedError(ExitCode::kInternal, "training stays non-finite: " + std::to_string(skipped_in_a_row_) + " steps in a row were skipped (training.max_skipped_in_a_row is " +
                                         std::to_string(config_.training().max_skipped_in_a_row()) + "); the last was " + head + ":\n" + found);
}

void Trainer::train_step(const std::vector<int64_t>& samples, int64_t epoch) {
  const auto begin = Clock::now();
  const GlobalBatchPlan plan(samples, config_.training().microbatches(), communicator_.rank(), communicator_.size());
  const auto outcome = step_->train(plan, config_.seed(), static_cast<uint32_t>(steps_done_));
  auto& parameters = model_->parameters();
  // The norm of the summed gradient is the same everywhere, so all ranks agree without asking.
  const double norm = optim::l2_norm(parameters.gradients());
  if (!std::isfinite(outcome.loss) || !std::isfinite(norm)) {
    handle_non_finite(plan, epoch, outcome.loss, norm);
    ++steps_done_;
    return;
  }
  skipped_in_a_row_ = 0;
  optim::clip_gradients(parameters, norm, config_.optimizer().clip_norm());
  const double rate = optim::learning_rate(config_.optimizer(), steps_done_, total_steps_, steps_per_epoch_);
  optimizer_->step(rate);
  model_->project_parameters();
  ++steps_done_;

  const double speed = static_cast<double>(samples.size()) / std::chrono::duration<double>(Clock::now() - begin).count();
  progress_.step(steps_done_, total_steps_, epoch, config_.training().epochs(), outcome.loss, speed);
  if (is_main() && (steps_done_ % config_.training().log_every_steps() == 0 || steps_done_ == total_steps_ || steps_done_ == 1)) {
    auto row = progress_row("train", epoch);
    row["loss"] = outcome.loss;
    row["terms"] = to_json(outcome.terms);
    row["learning_rate"] = rate;
    row["gradient_norm"] = norm;
    row["samples_per_second"] = speed;
    if (const auto temperature = temperature_value()) row["temperature"] = *temperature;
    directory_->append_metrics(row);
  }
}

void Trainer::validate(int64_t epoch) {
  if (split_.valid.empty() || validated_step_ == steps_done_) return;
  validated_step_ = steps_done_;
  const auto evaluation = evaluate(*step_, *reader_, communicator_, split_.valid, config_.evaluation().batch_size(), config_.seed(), true);
  const double value = select_by_ == "loss" ? evaluation.loss : metrics::metric_value(evaluation.metrics, select_by_);
  const double gain = metrics::higher_is_better(select_by_) ? value - best_value_ : best_value_ - value;
  // A first value is always an improvement, a NaN never.
  const bool better = !std::isnan(value) && (std::isnan(best_value_) || gain > config_.evaluation().min_improvement());
  if (better || !best_values_.defined()) {
    best_value_ = value;
    best_step_ = steps_done_;
    best_epoch_ = epoch;
    best_values_ = model_->parameters().values().clone();
    evaluations_without_improvement_ = 0;
  } else {
    ++evaluations_without_improvement_;
  }
  char text[160];
  std::snprintf(text, sizeof text, "epoch %ld  step %lu  valid loss %.4f  %s %.4f%s", epoch, steps_done_, evaluation.loss, select_by_.c_str(),
                value, best_step_ == steps_done_ ? "  (best so far)" : "");
  progress_.line(text);
  if (is_main()) {
    auto row = progress_row("valid", epoch);
    row.update(to_json(evaluation));
    row["best"] = best_step_ == steps_done_;
    directory_->append_metrics(row);
    if (best_step_ == steps_done_)
      best_fingerprint_ = write_weights(directory_->file("weights/best.safetensors"), model_->parameters(), moments_, data_.shape.modalities,
                                        weights_metadata(config_.name(), steps_done_, data_.index()));
  }
  const uint32_t patience = config_.evaluation().patience();
  stopped_early_ = patience > 0 && evaluations_without_improvement_ >= patience;
}

void Trainer::train_loop() {
  std::vector<double> labels;
  for (const int64_t sample : split_.train) labels.push_back(data_.index().labels[sample]);
  const int64_t batch_size = config_.training().batch_size();
  const auto& evaluation = config_.evaluation();
  for (int64_t epoch = 1; steps_done_ < total_steps_ && !stopped_early_; ++epoch) {
    const auto order = batch::epoch_order(split_.train, labels, sampling_of(config_.training().sampling()), config_.seed(),
                                          static_cast<uint32_t>(epoch - 1));
    for (uint64_t b = 0; b < steps_per_epoch_ && steps_done_ < total_steps_ && !stopped_early_; ++b) {
      const int64_t begin = static_cast<int64_t>(b) * batch_size;
      const int64_t end = std::min<int64_t>(begin + batch_size, static_cast<int64_t>(order.size()));
      train_step({order.begin() + begin, order.begin() + end}, epoch);
      if (evaluation.every_steps() > 0 && steps_done_ % evaluation.every_steps() == 0) validate(epoch);
    }
    const bool last = steps_done_ >= total_steps_;
    if (last || (evaluation.every_epochs() > 0 && epoch % evaluation.every_epochs() == 0)) validate(epoch);
  }
}

void Trainer::finish() {
  progress_.clear();
  auto& parameters = model_->parameters();
  std::string last_fingerprint;
  nlohmann::json result;
  distributed::together(communicator_, [&] {
    if (!is_main()) return;
    const auto metadata = weights_metadata(config_.name(), steps_done_, data_.index());
    last_fingerprint = write_weights(directory_->file("weights/last.safetensors"), parameters, moments_, data_.shape.modalities, metadata);
    // Without a validation split nothing says which weights are best: the last ones.
    if (best_values_.defined()) return;
    best_fingerprint_ = write_weights(directory_->file("weights/best.safetensors"), parameters, moments_, data_.shape.modalities, metadata);
  });
  if (best_values_.defined()) {
    const at::NoGradGuard no_gradient;
    parameters.values().copy_(best_values_);
  } else {
    best_step_ = steps_done_;
  }

  std::vector<ResultColumn> columns;
  std::vector<std::vector<int64_t>> confusion;
  for (const auto& [name, samples] : {std::pair{std::string("valid"), split_.valid}, std::pair{std::string("test"), split_.test}}) {
    if (samples.empty()) continue;
    const auto evaluation = evaluate(*step_, *reader_, communicator_, samples, config_.evaluation().batch_size(), config_.seed(), true);
    const auto floor = floor_metrics(data_.index(), split_.train, samples);
    result[name] = to_json(evaluation);
    result["floors"][name] = to_json(floor);
    columns.push_back({name, evaluation.metrics});
    columns.push_back({name + " floor", floor});
    confusion = evaluation.confusion;
    if (is_main()) directory_->write("predictions-" + name + ".csv", predictions_csv(data_.index(), evaluation.predictions));
  }
  if (!is_main()) return;
  result["best"] = {{"step", best_step_}, {"epoch", best_epoch_}, {"selected_by", "valid/" + select_by_},
                    {"value", std::isfinite(best_value_) ? nlohmann::json(best_value_) : nlohmann::json()}, {"fingerprint", best_fingerprint_}};
  if (split_.valid.empty()) result["best"]["selected_by"] = "last step (there is no validation split)";
  result["last"] = {{"step", steps_done_}, {"fingerprint", last_fingerprint}};
  result["stopped_early"] = stopped_early_;
  if (config_.has_miar()) result["model_note"] = kMiarNote;
  result["skipped_steps"] = skipped_steps_;
  result["parameters"] = parameters.count();
  result["world_size"] = communicator_.size();
  result["seed"] = config_.seed();
  result["seconds"] = std::chrono::duration<double>(Clock::now() - started_).count();
  directory_->write("result.json", result.dump(2) + "\n");

  std::printf("\n%s: best weights of step %lu of %lu%s\n", config_.name().c_str(), best_step_, steps_done_,
              stopped_early_ ? " (stopped early)" : "");
  if (skipped_steps_ > 0) std::printf("%lu steps were skipped as non-finite\n", skipped_steps_);
  if (!columns.empty()) std::printf("\n%s\n", results_table(columns).c_str());
  if (!confusion.empty()) std::printf("%s\n", confusion_table(data_.index().class_names, confusion).c_str());
  if (!columns.empty())
    std::printf("floor: what predicting the training %s scores\n",
                data_.index().task == data::Task::kRegression ? "median for every sample" : "majority class for every sample");
  if (!columns.empty()) warn_if_nothing_learnt(columns[columns.size() - 2], columns.back());
  if (config_.has_miar()) std::printf("%s\n", kMiarNote);
  if (const auto temperature = temperature_value(); temperature && *temperature <= 0)
    std::printf("the learnt temperature of the best weights is %g: as a divisor it turns every similarity round\n", *temperature);
  std::printf("run directory: %s\n", options_.run_directory.c_str());
}

void Trainer::warn_if_nothing_learnt(const ResultColumn& result, const ResultColumn& floor) const {
  const std::string name = data_.index().task == data::Task::kRegression ? "MAE" : "WA";
  const double value = metrics::metric_value(result.metrics, name), trivial = metrics::metric_value(floor.metrics, name);
  const bool above = metrics::higher_is_better(name) ? value > trivial : value < trivial;
  if (!above)
    std::printf("NOT above the floor: %s on %s is %.4f, the trivial prediction's is %.4f. Nothing was learnt that carries over.\n",
                name.c_str(), result.title.c_str(), value, trivial);
}

void Trainer::run() {
  prepare();
  progress_.line(summary());
  if (options_.dry_run) {
    if (is_main()) std::printf("dry run: the experiment and its data are in order; nothing was trained or written\n");
    return;
  }
  start_run_directory();
  train_loop();
  finish();
}

}  // namespace

void train(const config::LoadedExperiment& loaded, const TrainOptions& options, distributed::Communicator& communicator) {
  Trainer(loaded, options, communicator).run();
}

}  // namespace muster::training
