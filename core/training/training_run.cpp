#include "core/training/training_run.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "base/sha256.h"
#include "core/config/resolved_text.h"
#include "core/config/stored.h"
#include "core/models/make_model.h"
#include "core/run/environment.h"
#include "core/run/rank_table.h"
#include "core/run/saved_tensors.h"
#include "core/run/weights.h"
#include "core/training/finalize.h"
#include "core/training/same_job.h"
#include "distributed/watchdog.h"

namespace muster::training {

// What rank 0 does with the run directory. As run_on_all_ranks(), but that another job has it is a type of its own.
void TrainingRun::at_run_directory(const std::function<void()>& work) {
  std::string taken;
  distributed::run_on_all_ranks(communicator_, [&] {
    try {
      if (is_main()) work();
    } catch (const run::RunDirInUse& error) {
      taken = error.what();
    }
  });
  taken = communicator_.all_gather_bytes(taken)[0];
  if (!taken.empty()) throw run::SharedRunDirInUse(taken);
}

// Decides between a new run and one that goes on; a run that goes on is held from here.
void TrainingRun::open_run_directory() {
  std::string word = "new";
  at_run_directory([&] {
    const std::string& path = options_.run_directory;
    const run::RunDirState place = run::run_dir_state(path);
    const bool is_new = place == run::RunDirState::kNothing || place == run::RunDirState::kPrepared;
    if (options_.begin == Begin::kResume || (options_.begin == Begin::kAuto && !is_new)) {
      if (is_new) throw Error(ExitCode::kUsage, path + ": there is no such run to resume");
      word = "resume";
      if (options_.dry_run) return;
      directory_.emplace(
          path, [&](const std::string& text) { progress_.line(text); }, !trial_);
      checkpoints::sweep_leftovers(directory_->file("checkpoints"));
    } else if (!options_.dry_run) {
      run::require_new_run_directory(path);
    }
  });
  resumes_ = communicator_.all_gather_bytes(word)[0] == "resume";
}

void TrainingRun::prepare() {
  open_run_directory();
  distributed::run_on_all_ranks(communicator_, [&] {
    config::with_places(loaded_, [&] {
      data_ = open_data(config_, "", true, trial_ ? &trial_->datasets : nullptr);
      split_ = split_data(config_, data_, true);
      if (trial_ && !trial_->sees_test_split) {
        split_.test.clear();
        require_validation_split(config_, data_, split_);  // it is judged by nothing else
      }
      model_ = models::make_model(config_, data_.shape);
    });
  });
  progress_.line("reading " + data_.dataset->source() + ": " + std::to_string(data_.index().size()) + " samples");
  check_data();
  plan_.emplace(loaded_, data_.index(), split_.train);
  select_by_ = config_.evaluation().select_by();
  if (select_by_.empty()) select_by_ = models::spec_of(config_).default_metric(data_.index().task);
  if (resumes_)
    point_ =
        run::find_resume_point(options_.run_directory, config_, provenance_, options_.force, communicator_, progress_);

  const bool from_checkpoint = point_.loaded.has_value();
  if (config_.data().standardize() && !from_checkpoint) moments_ = fit_moments(data_, split_.train, communicator_);
  distributed::run_on_all_ranks(communicator_, [&] {
    if (from_checkpoint) return;
    if (!options_.init_from.empty()) init_from_ = {options_.init_from, sha256_of_file(options_.init_from)};
    if (resumes_ && !options_.force) require_same_beginning();
    if (options_.init_from.empty()) return;
    const run::Weights weights = run::read_weights(options_.init_from, data_.shape);
    run::load_weights(weights, options_.init_from, data_.index(), config_.data().standardize(), model_->parameters());
  });
  if (from_checkpoint) distributed::run_on_all_ranks(communicator_, [&] { restore_weights(); });
  require_same_weights(model_->parameters(), moments_, communicator_);
  reader_ = std::make_unique<batch::BatchReader>(*data_.dataset, data_.modalities, moments_,
                                                 model_->parameters().dtype(), compute_.device);
  model_->parameters().move_to(compute_.device);
  distributed::run_on_all_ranks(communicator_, [&] {
    config::with_places(loaded_,
                        [&] { reader_->keep_on_device(residency_of(config_.training()), compute_.ranks_on_gpu); });
  });
  const auto& optimizer = config_.optimizer();
  optimizer_ = std::make_unique<optim::AdamW>(
      model_->parameters(),
      optim::AdamWOptions{optimizer.beta1(), optimizer.beta2(), optimizer.epsilon(), optimizer.weight_decay()});
  if (from_checkpoint) distributed::run_on_all_ranks(communicator_, [&] { restore_progress(); });
  step_ = std::make_unique<Step>(*model_, *reader_, communicator_,
                                 StepOptions{compute_.microbatches, compute_.reproducible, compute_.bf16});
  guard_.emplace(compute_.device);
}

// Whether all features are finite, and what the data's hash is: known already where an earlier trial of this process
// had the same data.
void TrainingRun::check_data() {
  DatasetCache* cache = trial_ ? &trial_->datasets : nullptr;
  if (!cache || std::find(cache->finite.begin(), cache->finite.end(), data_.modalities) == cache->finite.end()) {
    require_finite_features(data_, communicator_, [&](int64_t done, int64_t total) {
      distributed::report_progress();
      progress_.work("checking features, sample", done, total);
    });
    progress_.clear();
    if (cache) cache->finite.push_back(data_.modalities);
  }
  std::string sha256 = cache ? cache->sha256 : "";
  if (sha256.empty()) sha256 = require_same_data(*data_.dataset, communicator_);
  if (cache) cache->sha256 = sha256;
  provenance_ = run::provenance_of_this_job(sha256, compute_.numerics);
}

std::string TrainingRun::summary() const {
  std::string text = config_.name() + ": " + models::spec_of(config_).title + ", " +
                     std::to_string(model_->parameters().count()) + " parameters; " +
                     std::to_string(split_.train.size()) + " train, " + std::to_string(split_.valid.size()) +
                     " valid, " + std::to_string(split_.test.size()) + " test samples";
  if (data_.dropped > 0) text += " (" + std::to_string(data_.dropped) + " dropped: a modality is missing)";
  text += "; global batch " + std::to_string(config_.training().batch_size()) + " on " +
          std::to_string(communicator_.size()) + (communicator_.size() == 1 ? " rank, " : " ranks, ") +
          std::to_string(compute_.threads) + (compute_.threads == 1 ? " thread" : " threads") + " each; " +
          std::to_string(plan_->total_steps()) + " steps";
  if (resumes_)
    text += point_.state.steps_done > 0 ? "\ngoes on after step " + std::to_string(point_.state.steps_done) +
                                              ", epoch " + std::to_string(plan_->epoch_of(point_.state.steps_done))
                                        : "\nno checkpoint was committed: begins again";
  const int cores = usable_cores();
  if (communicator_.size() == 1 && compute_.device.is_cpu() && compute_.threads < cores)
    text += "\nthis run uses " + std::to_string(compute_.threads) + " of " + std::to_string(cores) +
            " cores; for all: muster launch -n " + std::to_string(cores) + " train ... (the same model, sooner)";
  if (compute_.microbatches < communicator_.size())
    text += "\nnote: training.microbatches is " + std::to_string(compute_.microbatches) + ": the other ranks of " +
            std::to_string(communicator_.size()) + " have nothing to do";
  for (const auto& note : loaded_.notes) text += "\nnote: " + note;
  return text;
}

nlohmann::json TrainingRun::description() const {
  return {{"source", data_.dataset->source()}, {"sha256", provenance_.data_sha256}, {"samples", data_.index().size()},
          {"train", split_.train.size()},      {"valid", split_.valid.size()},      {"test", split_.test.size()},
          {"dropped", data_.dropped}};
}

void TrainingRun::begin_run() {
  nlohmann::json job =
      run::describe_environment(communicator_, options_.command_line, describe_rank(compute_), describe_job(compute_));
  if (communicator_.size() > 1) progress_.line(run::rank_table(job["ranks"]));
  job["steps"] = {{"total", plan_->total_steps()}, {"per_epoch", plan_->steps_per_epoch()}};
  at_run_directory([&] {
    const std::string config_text = config::resolved_text(config_);
    if (!resumes_) {
      job["data"] = description();
      if (!init_from_.path.empty()) job["init_from"] = {{"path", init_from_.path}, {"sha256", init_from_.sha256}};
      directory_.emplace(
          options_.run_directory, config_text, job, [&](const std::string& text) { progress_.line(text); }, !trial_);
      return;
    }
    // Those of later steps were found damaged: they must not count as the newest ones any more.
    for (const auto& found : checkpoints::find_checkpoints(directory_->file("checkpoints")))
      if (found.step > state_.steps_done) checkpoints::set_aside(found.path);
    directory_->continue_after(state_.steps_done);
    nlohmann::json environment = directory_->environment();
    job["from_step"] = state_.steps_done;
    job["changes"] = point_.changes;
    environment["resumes"].push_back(job);
    directory_->write("environment.json",
                      environment.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    directory_->write("config.txtpb", config_text);
    directory_->remove("result.json");
    // The file may be newer than the checkpoint. What comes after may be something else this time.
    if (best_values_.defined() && !trial_) write_best_weights(best_values_, state_.best_step);
  });
  distributed::keep_flight_records_in(options_.run_directory + "/logs");
  const run::Checkpointing::Settings settings{config_.checkpoints(), options_.run_directory, plan_->steps_per_epoch(),
                                              options_.time_limit, started_};
  checkpointing_.emplace(settings, state_.steps_done, directory_ ? &*directory_ : nullptr, communicator_, progress_);
  checkpointing_->prepare(run::tensors_of(model_->parameters(), *optimizer_, moments_, data_.shape.modalities,
                                          model_->parameters().values()));
}

// A run that has no checkpoint yet must begin again from the weights that it began from.
void TrainingRun::require_same_beginning() const {
  const run::InitFrom recorded = run::recorded_init_from(options_.run_directory);
  if (recorded.sha256 == init_from_.sha256) return;
  const auto text = [](const run::InitFrom& weights) {
    return weights.path.empty() ? std::string("its own initial weights")
                                : weights.path + " (SHA-256 " + weights.sha256 + ")";
  };
  throw Error(ExitCode::kBadConfig,
              options_.run_directory +
                  ": this run has no checkpoint yet and begins again, but not from the weights that it began from: " +
                  text(recorded) + " -> " + text(init_from_) +
                  ". Give those with --init-from, or begin a new run in another --run-dir, or add --force.");
}

// What checkpoints hold of the model itself; before it moves to its device.
void TrainingRun::restore_weights() {
  const std::string& source = point_.loaded->checkpoint.path;
  const run::Weights weights = run::weights_in(point_.loaded->tensors, source, data_.shape);
  run::load_weights(weights, source, data_.index(), config_.data().standardize(), model_->parameters());
  moments_ = weights.moments;
}

void TrainingRun::restore_progress() {
  const auto& tensors = point_.loaded->tensors;
  const std::string& source = point_.loaded->checkpoint.path;
  auto& parameters = model_->parameters();
  run::restore_optimizer(tensors, source, parameters, *optimizer_);
  state_ = point_.state;
  earlier_seconds_ = state_.seconds;
  if (state_.has_best)
    best_values_ =
        state_.best_step == state_.steps_done ? parameters.values().clone() : run::best_in(tensors, source, parameters);
  // As the patience is now.
  const uint32_t patience = config_.evaluation().patience();
  state_.stopped_early = patience > 0 && state_.evaluations_without_improvement >= patience;
  point_.loaded.reset();
}

bool TrainingRun::nothing_is_left() const {
  if (!resumes_ || !(is_finished() || trial_)) return false;
  // A trial makes no checkpoint at its end: its result alone says that there is one, if it is of this experiment.
  const auto is_of_this_experiment = [&] {
    const auto stored = config::load_stored_experiment(directory_->file("config.txtpb")).experiment;
    return config::differences(stored, config_).empty();
  };
  const bool concluded = is_main() && std::filesystem::exists(directory_->file("result.json")) &&
                         (is_finished() || is_of_this_experiment());
  return communicator_.all_gather_bytes(concluded ? "concluded" : "")[0] == "concluded";
}

void TrainingRun::save() {
  const distributed::PhaseScope phase(distributed::Phase::kSave);
  if (!pending_steps_.empty()) check_pending_steps("");
  // Rank 0 alone writes files and looks at the clock.
  state_.best_fingerprint = communicator_.all_gather_bytes(state_.best_fingerprint)[0];
  state_.seconds = std::stod(communicator_.all_gather_bytes(std::to_string(seconds()))[0]);
  checkpoints::CheckpointInfo info;
  info.step = state_.steps_done;
  info.epoch = static_cast<int64_t>(state_.steps_done / plan_->steps_per_epoch());
  info.seed = config_.seed();
  if (state_.validated_step == state_.steps_done) info.score = score_;
  info.config = config::resolved_text(config_);
  info.training_state = run::to_bytes(state_, provenance_);
  const bool best_is_here = state_.best_step == state_.steps_done;
  checkpointing_->save(info, run::tensors_of(model_->parameters(), *optimizer_, moments_, data_.shape.modalities,
                                             best_is_here ? at::Tensor() : best_values_));
}

void TrainingRun::settle() {
  const distributed::PhaseScope phase(distributed::Phase::kSave);
  checkpointing_->settle();
}

void TrainingRun::write_best_weights(const at::Tensor& values, uint64_t step) {
  directory_->require_held();
  state_.best_fingerprint =
      run::write_weights(directory_->file("weights/best.safetensors"),
                         run::weight_tensors(model_->parameters().parts_of(values), moments_, data_.shape.modalities),
                         run::weights_metadata(config_.name(), step, data_.index()));
}

void TrainingRun::stop(const std::string& reason) {
  progress_.clear();
  save();
  settle();
  const std::string head = "stopped by " + reason + " after step " + std::to_string(state_.steps_done) + " of " +
                           std::to_string(plan_->total_steps());
  const std::string go_on = "go on, on any number of ranks, with: muster resume " + options_.run_directory;
  const std::string saved = state_.steps_done > 0 ? ", which is saved; " : ", so there is nothing to save; ";
  if (checkpointing_->newest() == state_.steps_done) throw SharedError(ExitCode::kRequeue, head + saved + go_on);
  throw SharedError(ExitCode::kIo, head + ", but that could not be saved: " + checkpointing_->last_failure() +
                                       "\nThe newest checkpoint is of step " +
                                       std::to_string(checkpointing_->newest()) + "; " + go_on);
}

void TrainingRun::train_loop() {
  const auto& evaluation = config_.evaluation();
  const auto every = [](uint64_t count, uint64_t period) { return period > 0 && count % period == 0; };
  const distributed::PhaseScope phase(distributed::Phase::kStep);  // with what ranks agree on between steps
  for (bool first = true; !is_finished(); first = false) {
    const auto decision = checkpointing_->between_steps(state_.steps_done);
    if (!decision.stop.empty()) stop(decision.stop);
    if (decision.save) save();
    const int64_t epoch = plan_->epoch_of(state_.steps_done);
    const auto samples = plan_->samples(state_.steps_done);
    if (first) step_->expect(samples);
    if (state_.steps_done + 1 < plan_->total_steps()) step_->expect(plan_->samples(state_.steps_done + 1));
    train_step(samples, epoch);
    const bool last = state_.steps_done == plan_->total_steps();
    const bool epoch_ends = state_.steps_done % plan_->steps_per_epoch() == 0;
    if (last || every(state_.steps_done, evaluation.every_steps()) ||
        (epoch_ends && every(epoch, evaluation.every_epochs())))
      validate(epoch);
  }
}

void TrainingRun::run() {
  prepare();
  progress_.line(summary());
  if (options_.dry_run) {
    if (is_main()) std::printf("dry run: the experiment and its data are in order; nothing was trained or written\n");
    return;
  }
  if (nothing_is_left()) {
    if (is_main() && !trial_)
      std::printf("%s is finished already, after %lu steps: see its result.json\n", options_.run_directory.c_str(),
                  state_.steps_done);
    return;
  }
  begin_run();
  train_loop();
  // The last step is always evaluated, also when an earlier job of a longer run has made it.
  if (!state_.stopped_early) validate(plan_->epoch_of(state_.steps_done - 1));
  progress_.clear();
  if (!trial_) save();
  settle();
  const distributed::PhaseScope phase(distributed::Phase::kEvaluation);
  conclude({config_, data_, split_, moments_, *reader_, *model_, *step_, communicator_,
            directory_ ? &*directory_ : nullptr, best_evaluation_ ? &*best_evaluation_ : nullptr, trial_ != nullptr},
           state_, select_by_, best_values_,
           {{"seconds", seconds()}, {"checkpoints", checkpointing_->summary()}, {"resumed", resumes_}});
}

}  // namespace muster::training
