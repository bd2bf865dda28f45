#include "core/training/trainer.h"

#include <cmath>
#include <chrono>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/config/resolved_text.h"
#include "core/metrics/metrics.h"
#include "core/models/make_model.h"
#include "core/optim/adamw.h"
#include "core/optim/schedule.h"
#include "core/training/data_source.h"
#include "core/training/compute.h"
#include "core/training/environment.h"
#include "core/training/evaluation.h"
#include "core/training/finite_guard.h"
#include "core/training/progress.h"
#include "core/training/report.h"
#include "core/training/results.h"
#include "core/training/run_directory.h"
#include "core/training/same_job.h"
#include "core/training/step.h"
#include "core/training/training_plan.h"
#include "core/training/weights.h"

namespace muster::training {
namespace {

using distributed::SharedError;
using distributed::ExitCode;
using Clock = std::chrono::steady_clock;

// One run from checked inputs to result.json.
class Trainer {
 public:
  Trainer(const config::LoadedExperiment& loaded, const TrainOptions& options, distributed::Communicator& communicator,
          const Compute& compute)
      : loaded_(loaded), config_(loaded.experiment), options_(options), communicator_(communicator), progress_(communicator.rank() == 0),
        compute_(compute) {}

  void run();

 private:
  bool is_main() const { return communicator_.rank() == 0; }
  void prepare();
  std::string summary() const;
  std::optional<double> temperature_value() const;
  void start_run_directory();
  void train_loop();
  void train_step(const std::vector<int64_t>& samples, int64_t epoch);
  // A step that has been worked on: its number from 0.
  struct TakenStep {
    uint64_t number;
    int64_t epoch;
    std::vector<int64_t> samples;
  };
  void handle_non_finite(const TakenStep& taken, const std::string& figures);
  bool logs_step(uint64_t done) const;
  bool judge_steps(const std::string& figures_of_last);
  void validate(int64_t epoch);
  void finish();
  nlohmann::json progress_row(const char* kind, int64_t epoch) const;

  const config::LoadedExperiment& loaded_;
  const config::Experiment& config_;
  const TrainOptions& options_;
  distributed::Communicator& communicator_;
  Progress progress_;
  Clock::time_point started_ = Clock::now();
  const Compute& compute_;

  DataSource data_;
  data::Split split_;
  std::string data_hash_;
  std::vector<batch::FeatureMoments> moments_;
  std::unique_ptr<batch::BatchReader> reader_;
  std::unique_ptr<models::Model> model_;
  std::unique_ptr<optim::AdamW> optimizer_;
  std::optional<TrainingPlan> plan_;
  std::unique_ptr<Step> step_;
  std::optional<FiniteGuard> guard_;
  std::vector<TakenStep> unjudged_;  // steps since the guard was last asked
  Clock::time_point looked_at_;      // when the first of them began
  uint64_t samples_since_look_ = 0;
  std::optional<RunDirectory> directory_;

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
  distributed::together(communicator_, [&] {
    if (is_main() && !options_.dry_run) require_new_run_directory(options_.run_directory);
    config::with_places(loaded_, [&] {
      data_ = open_data(config_, "", true);
      split_ = split_data(config_, data_, true);
      model_ = models::make_model(config_, data_.shape);
    });
  });
  progress_.line("reading " + data_.dataset->source() + ": " + std::to_string(data_.index().size()) + " samples");
  require_finite_features(data_, communicator_,
                          [&](int64_t done, int64_t total) { progress_.work("checking features, sample", done, total); });
  progress_.clear();
  data_hash_ = require_same_data(*data_.dataset, communicator_);
  if (config_.data().standardize()) moments_ = fit_moments(data_, split_.train, communicator_);

  distributed::together(communicator_, [&] {
    if (options_.init_from.empty()) return;
    const Weights weights = read_weights(options_.init_from, data_.shape);
    load_weights(weights, options_.init_from, data_.index(), config_.data().standardize(), model_->parameters());
  });
  require_same_weights(model_->parameters(), moments_, communicator_);
  reader_ = std::make_unique<batch::BatchReader>(*data_.dataset, data_.modalities, moments_, model_->parameters().dtype(), compute_.device);
  model_->parameters().move_to(compute_.device);
  distributed::together(communicator_, [&] {
    config::with_places(loaded_, [&] { reader_->keep_on_device(residency_of(config_.training()), compute_.ranks_on_gpu); });
  });
  const auto& optimizer = config_.optimizer();
  optimizer_ = std::make_unique<optim::AdamW>(
      model_->parameters(), optim::AdamWOptions{optimizer.beta1(), optimizer.beta2(), optimizer.epsilon(), optimizer.weight_decay()});
  step_ = std::make_unique<Step>(*model_, *reader_, communicator_, StepOptions{compute_.microbatches, compute_.reproducible, compute_.bf16});
  guard_.emplace(compute_.device);

  plan_.emplace(loaded_, data_.index(), split_.train);
  select_by_ = config_.evaluation().select_by();
  if (select_by_.empty()) select_by_ = data_.index().task == data::Task::kRegression ? "MAE" : "WA";
}

std::string Trainer::summary() const {
  std::string text = config_.name() + ": " + (config_.has_foal_net() ? "Foal-Net" : "MIAR") + ", " +
                     std::to_string(model_->parameters().count()) + " parameters; " + std::to_string(split_.train.size()) + " train, " +
                     std::to_string(split_.valid.size()) + " valid, " + std::to_string(split_.test.size()) + " test samples";
  if (data_.dropped > 0) text += " (" + std::to_string(data_.dropped) + " dropped: a modality is missing)";
  text += "; global batch " + std::to_string(config_.training().batch_size()) + " on " + std::to_string(communicator_.size()) +
          (communicator_.size() == 1 ? " rank, " : " ranks, ") + std::to_string(compute_.threads) + (compute_.threads == 1 ? " thread" : " threads") +
          " each; " + std::to_string(plan_->total_steps()) + " steps";
  const int cores = usable_cores();
  if (communicator_.size() == 1 && compute_.threads < cores)
    text += "\nthis run uses " + std::to_string(compute_.threads) + " of " + std::to_string(cores) + " cores; for all: muster launch -n " +
            std::to_string(cores) + " train ... (the same model, sooner)";
  if (compute_.microbatches < communicator_.size())
    text += "\nnote: training.microbatches is " + std::to_string(compute_.microbatches) + ": the other ranks of " +
            std::to_string(communicator_.size()) + " have nothing to do";
  for (const auto& note : loaded_.notes) text += "\nnote: " + note;
  return text;
}

// Foal-Net's learnt temperature, where it has one.
std::optional<double> Trainer::temperature_value() const {
  for (const auto& spec : model_->parameters().specs())
    if (spec.name == "avel.temperature") return model_->parameters()[spec.name].item<double>();
  return std::nullopt;
}

void Trainer::start_run_directory() {
  nlohmann::json environment = describe_environment(communicator_, options_.command_line, compute_);
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

void Trainer::handle_non_finite(const TakenStep& taken, const std::string& figures) {
  const std::string found = step_->diagnose(step_->plan(taken.samples), config_.seed(), static_cast<uint32_t>(taken.number));
  const std::string head = "step " + std::to_string(taken.number + 1) + " (epoch " + std::to_string(taken.epoch) + ")" + figures;
  if (config_.training().non_finite() != config::Training::SKIP_STEP)
    throw SharedError(ExitCode::kInternal, "training became non-finite at " + head + ":\n" + found +
                                         "Lower optimizer.learning_rate, set optimizer.clip_norm or data.standardize, or allow "
                                         "training.non_finite: SKIP_STEP.");
  ++skipped_steps_;
  ++skipped_in_a_row_;
  progress_.line("skipped " + head + "\n" + found);
  if (is_main()) {
    auto row = progress_row("skipped", taken.epoch);
    row["found"] = found;
    directory_->append_metrics(row);
  }
  if (skipped_in_a_row_ > config_.training().max_skipped_in_a_row())
    throw SharedError(ExitCode::kInternal, "training stays non-finite: " + std::to_string(skipped_in_a_row_) + " steps in a row were skipped (training.max_skipped_in_a_row is " +
                                         std::to_string(config_.training().max_skipped_in_a_row()) + "); the last was " + head + ":\n" + found);
}

bool Trainer::logs_step(uint64_t done) const {
  return done % config_.training().log_every_steps() == 0 || done == plan_->total_steps() || done == 1;
}

// True if all steps since the last call were finite. Otherwise the first that was not has been dealt with; none after it has changed
// the weights. figures_of_last: loss and norm of the last step, for the message; empty when they were not kept.
bool Trainer::judge_steps(const std::string& figures_of_last) {
  const auto bad = guard_->look();
  const auto taken = std::move(unjudged_);
  unjudged_.clear();
  if (!bad) {
    skipped_in_a_row_ = 0;
    return true;
  }
  for (const auto& step : taken)
    if (step.number == *bad) handle_non_finite(step, *bad == taken.back().number ? figures_of_last : "");
  return false;
}

void Trainer::train_step(const std::vector<int64_t>& samples, int64_t epoch) {
  if (unjudged_.empty()) {
    looked_at_ = Clock::now();
    samples_since_look_ = 0;
  }
  samples_since_look_ += samples.size();
  const int64_t sent_before = communicator_.bytes_sent();
  const auto plan = step_->plan(samples);
  const auto outcome = step_->train(plan, config_.seed(), static_cast<uint32_t>(steps_done_));
  auto& parameters = model_->parameters();
  // The norm of the summed gradient is the same everywhere, so all ranks agree without asking.
  const at::Tensor norm = optim::l2_norm(parameters.gradients());
  const at::Tensor loss = outcome.total();
  const at::Tensor skip = guard_->judge(steps_done_, loss, norm);
  unjudged_.push_back({steps_done_, epoch, samples});
  // Looking makes the host wait for a GPU. Whoever skips steps must know at once; otherwise a bad step holds the weights where they are.
  const bool logs = logs_step(steps_done_ + 1);
  const bool looks = compute_.device.is_cpu() || logs || config_.training().non_finite() == config::Training::SKIP_STEP;
  if (looks && !judge_steps(": loss " + std::to_string(loss.item<double>()) + ", gradient norm " + std::to_string(norm.item<double>()))) {
    ++steps_done_;
    return;
  }
  optim::clip_gradients(parameters, norm, config_.optimizer().clip_norm());
  const double rate = optim::learning_rate(config_.optimizer(), steps_done_, plan_->total_steps(), plan_->steps_per_epoch());
  optimizer_->step(rate, looks ? at::Tensor() : skip);
  model_->project_parameters();
  ++steps_done_;
  if (!looks) return;

  const double speed = static_cast<double>(samples_since_look_) / std::chrono::duration<double>(Clock::now() - looked_at_).count();
  progress_.step(steps_done_, plan_->total_steps(), epoch, config_.training().epochs(), loss.item<double>(), speed);
  if (!is_main() || !logs) return;
  auto row = progress_row("train", epoch);
  row["loss"] = loss.item<double>();
  row["terms"] = to_json(outcome.terms());
  row["learning_rate"] = rate;
  row["gradient_norm"] = norm.item<double>();
  row["samples_per_second"] = speed;
  row["microbatches"] = plan.filled_counts();
  row["bytes_sent"] = communicator_.bytes_sent() - sent_before;
  if (const auto temperature = temperature_value()) row["temperature"] = *temperature;
  directory_->append_metrics(row);
}

void Trainer::validate(int64_t epoch) {
  if (split_.valid.empty() || validated_step_ == steps_done_) return;
  validated_step_ = steps_done_;
  if (!unjudged_.empty()) judge_steps("");
  require_same_weights(model_->parameters(), moments_, communicator_);
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
  const auto& evaluation = config_.evaluation();
  const auto every = [](uint64_t count, uint64_t period) { return period > 0 && count % period == 0; };
  while (steps_done_ < plan_->total_steps() && !stopped_early_) {
    const int64_t epoch = plan_->epoch_of(steps_done_);
    const auto samples = plan_->samples(steps_done_);
    if (steps_done_ == 0) step_->expect(samples);
    if (steps_done_ + 1 < plan_->total_steps()) step_->expect(plan_->samples(steps_done_ + 1));
    train_step(samples, epoch);
    const bool last = steps_done_ == plan_->total_steps();
    const bool epoch_ends = steps_done_ % plan_->steps_per_epoch() == 0;
    if (last || every(steps_done_, evaluation.every_steps()) || (epoch_ends && every(epoch, evaluation.every_epochs()))) validate(epoch);
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

  Report report;
  for (const auto& [name, samples] : {std::pair{std::string("valid"), split_.valid}, std::pair{std::string("test"), split_.test}}) {
    if (samples.empty()) continue;
    const auto evaluation = evaluate(*step_, *reader_, communicator_, samples, config_.evaluation().batch_size(), config_.seed(), true);
    const auto floor = floor_metrics(data_.index(), split_.train, samples);
    result[name] = to_json(evaluation);
    result["floors"][name] = to_json(floor);
    report.columns.push_back({name, evaluation.metrics});
    report.columns.push_back({name + " floor", floor});
    report.confusion = evaluation.confusion;
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

  report.name = config_.name();
  report.best_step = best_step_;
  report.last_step = steps_done_;
  report.stopped_early = stopped_early_;
  report.skipped_steps = skipped_steps_;
  report.class_names = data_.index().class_names;
  report.regression = data_.index().task == data::Task::kRegression;
  report.miar = config_.has_miar();
  report.temperature = temperature_value();
  report.run_directory = options_.run_directory;
  print_report(report);
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
  Compute compute;
  distributed::together(communicator, [&] {
    config::with_places(loaded, [&] { compute = prepare_compute(loaded.experiment.training(), communicator); });
  });
  const auto gpus = join_gpus(compute, communicator);
  Trainer(loaded, options, gpus ? *gpus : communicator, compute).run();
}

}  // namespace muster::training
