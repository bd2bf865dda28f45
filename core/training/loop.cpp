#include "core/training/loop.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "core/batch/batches.h"
#include "core/config/resolved_text.h"
#include "core/metrics/metrics.h"
#include "core/optim/schedule.h"
#include "core/training/same_job.h"
#include "distributed/watchdog.h"

namespace muster::training {

TrainingLoop::TrainingLoop(TrainingRun& run)
    : run_(run),
      state_(run.state),
      checkpointing_({run.config.checkpoints(), run.options.run_directory, run.plan->steps_per_epoch(),
                      run.options.time_limit, run.started},
                     run.state.steps_done(), run.directory ? &*run.directory : nullptr, run.communicator, run.progress),
      guard_(run.compute.device) {
  const auto& parameters = run.model->parameters();
  checkpointing_.prepare(
      run::tensors_of(parameters, *run.optimizer, run.moments, run.data.shape.modalities, parameters.values()));
}

void TrainingLoop::run() {
  const distributed::PhaseScope phase(distributed::Phase::kStep);  // with what ranks agree on between steps
  const batch::ModalityDropout dropout(run_.config, run_.data.shape.modalities);
  for (const auto& batch :
       batch::Batches(*run_.plan, *run_.reader, run_.step->division(), state_.steps_done(), dropout)) {
    if (state_.stopped_early()) break;
    const auto decision = checkpointing_.between_steps(state_.steps_done());
    if (!decision.stop.empty()) save_and_stop(decision.stop);
    if (decision.save) save(/*waits=*/false);

    const auto figures = train_step(batch);
    state_.set_steps_done(state_.steps_done() + 1);
    if (figures) log(batch, *figures);
    if (evaluation_is_due(batch.epoch)) validate(batch.epoch);
  }
  // The last step is always evaluated, even when an earlier job of a longer run has made it.
  if (!state_.stopped_early()) validate(run_.plan->epoch_of(state_.steps_done() - 1));
  run_.progress.clear();
  if (run_.policy.writes_all_files) save(/*waits=*/true);
}

// Forward and backward pass and the optimizer. Returns nothing when the host has not looked at the step, or when it was
// skipped.
std::optional<TrainingLoop::StepFigures> TrainingLoop::train_step(const batch::LoadedBatch& batch) {
  const auto& config = run_.config;
  if (pending_steps_.empty()) {
    first_pending_began_ = TrainingRun::Clock::now();
    pending_samples_ = 0;
  }
  pending_samples_ += batch.global.size();
  const int64_t sent_before = run_.communicator.bytes_sent();
  const auto outcome = run_.step->train(batch, config.seed());
  auto& parameters = run_.model->parameters();
  // The norm of the summed gradient is the same everywhere, so all ranks agree without asking.
  const at::Tensor norm = optim::l2_norm(parameters.gradients());
  const at::Tensor loss = outcome.total();
  const at::Tensor skip = guard_.check(batch.number, loss, norm);
  pending_steps_.push_back({batch.number, batch.epoch, batch.global.samples});
  // Looking makes the host wait for a GPU. With SKIP_STEP it must look at every step; otherwise a bad step leaves the
  // weights as they are until the host looks.
  const bool looks = run_.compute.device.is_cpu() || logs(batch.number + 1) ||
                     config.training().non_finite() == config::Training::SKIP_STEP;
  if (looks && !pending_steps_were_finite(
                   fmt::format(": loss {:f}, gradient norm {:f}", loss.item<double>(), norm.item<double>())))
    return std::nullopt;
  optim::clip_gradients(parameters, norm, config.optimizer().clip_norm());
  const double rate =
      optim::learning_rate(config.optimizer(), batch.number, run_.plan->total_steps(), run_.plan->steps_per_epoch());
  run_.optimizer->step(rate, looks ? at::Tensor() : skip);
  run_.model->project_parameters();
  if (!looks) return std::nullopt;
  const std::chrono::duration<double> elapsed = TrainingRun::Clock::now() - first_pending_began_;
  return StepFigures{loss.item<double>(),
                     outcome.terms(),
                     rate,
                     norm.item<double>(),
                     static_cast<double>(pending_samples_) / elapsed.count(),
                     run_.communicator.bytes_sent() - sent_before};
}

nlohmann::json TrainingLoop::metrics_row(const char* kind, uint64_t step, int64_t epoch) const {
  return {{"kind", kind}, {"step", step}, {"epoch", epoch}};
}

bool TrainingLoop::logs(uint64_t steps_done) const {
  return steps_done % run_.config.training().log_every_steps() == 0 || steps_done == run_.plan->total_steps() ||
         steps_done == 1;
}

void TrainingLoop::log(const batch::LoadedBatch& batch, const StepFigures& figures) {
  run_.progress.step(state_.steps_done(), run_.plan->total_steps(), batch.epoch, run_.config.training().epochs(),
                     figures.loss, figures.samples_per_second);
  if (!run_.is_main() || !logs(state_.steps_done())) return;
  auto row = metrics_row("train", state_.steps_done(), batch.epoch);
  row["loss"] = figures.loss;
  row["terms"] = run::to_json(figures.terms);
  row["learning_rate"] = figures.learning_rate;
  row["gradient_norm"] = figures.gradient_norm;
  row["samples_per_second"] = figures.samples_per_second;
  row["microbatches"] = batch.global.filled_counts;
  row["bytes_sent"] = figures.bytes_sent;
  if (const auto temperature = run_.model->temperature()) row["temperature"] = *temperature;
  run_.directory->append_metrics(row);
}

bool TrainingLoop::evaluation_is_due(int64_t epoch) const {
  const auto& evaluation = run_.config.evaluation();
  const auto every = [](uint64_t count, uint64_t period) { return period > 0 && count % period == 0; };
  const bool epoch_ends = state_.steps_done() % run_.plan->steps_per_epoch() == 0;
  return state_.steps_done() == run_.plan->total_steps() || every(state_.steps_done(), evaluation.every_steps()) ||
         (epoch_ends && every(epoch, evaluation.every_epochs()));
}

void TrainingLoop::validate(int64_t epoch) {
  if (run_.split.valid.empty() || state_.validated_step() == state_.steps_done()) return;
  const distributed::PhaseScope phase(distributed::Phase::kEvaluation);
  state_.set_validated_step(state_.steps_done());
  if (!pending_steps_.empty()) pending_steps_were_finite("");
  require_same_weights(run_.model->parameters(), run_.moments, run_.communicator);
  const auto evaluation = evaluate(*run_.step, *run_.reader, run_.communicator, run_.split.valid,
                                   run_.config.evaluation().batch_size(), run_.config.seed(), true);
  const double value =
      run_.select_by == "loss" ? evaluation.loss : metrics::metric_value(evaluation.metrics, run_.select_by);
  const bool is_best = keep_if_best(evaluation, value, epoch);
  run_.progress.line(fmt::format("epoch {}  step {}  valid loss {:.4f}  {} {:.4f}{}", epoch, state_.steps_done(),
                                 evaluation.loss, run_.select_by, value,
                                 std::isnan(value)
                                     ? "  (not defined on this split, so it cannot choose the best weights)"
                                 : is_best ? "  (best so far)"
                                           : ""));
  auto row = metrics_row("valid", state_.steps_done(), epoch);
  row.update(run::to_json(evaluation));
  row["best"] = is_best;
  distributed::run_on_all_ranks(run_.communicator, [&] {
    if (!run_.is_main()) return;
    run_.directory->append_metrics(row);
    if (is_best && run_.policy.writes_all_files)
      run_.write_best_weights(run_.model->parameters().values(), state_.steps_done());
  });
  const uint32_t patience = run_.config.evaluation().patience();
  state_.set_stopped_early(patience > 0 && state_.evaluations_without_improvement() >= patience);
  run_.policy.on_validation(row);
}

// value: of the metric that chooses. Whether these are the best weights so far.
bool TrainingLoop::keep_if_best(const Evaluation& evaluation, double value, int64_t epoch) {
  const bool higher_is_better = metrics::higher_is_better(run_.select_by);
  score_ = {run_.select_by, value, higher_is_better};
  const double best = state_.has_best() ? state_.best().value() : std::numeric_limits<double>::quiet_NaN();
  const double gain = higher_is_better ? value - best : best - value;
  // A first value is always an improvement, a NaN never.
  const bool better = !std::isnan(value) && (std::isnan(best) || gain > run_.config.evaluation().min_improvement());
  if (!better && run_.best_values.defined()) {
    state_.set_evaluations_without_improvement(state_.evaluations_without_improvement() + 1);
    return false;
  }
  state_.mutable_best()->set_value(value);
  state_.mutable_best()->set_step(state_.steps_done());
  state_.mutable_best()->set_epoch(epoch);
  state_.set_evaluations_without_improvement(0);
  // After the last step nothing changes the weights any more, so they need no copy.
  const at::Tensor values = run_.model->parameters().values();
  run_.best_values = state_.steps_done() == run_.plan->total_steps() ? values : values.clone();
  best_evaluation_ = evaluation;
  return true;
}

// True if all steps since the last call were finite. Otherwise the first that was not has been dealt with; none after
// it has changed the weights. figures_of_last: loss and norm of the last step, for the message; empty when they were
// not kept.
bool TrainingLoop::pending_steps_were_finite(const std::string& figures_of_last) {
  const auto bad = guard_.poll();
  const auto taken = std::move(pending_steps_);
  pending_steps_.clear();
  if (!bad) {
    state_.set_skipped_in_a_row(0);
    return true;
  }
  for (const auto& step : taken)
    if (step.number == *bad) handle_non_finite(step, *bad == taken.back().number ? figures_of_last : "");
  return false;
}

void TrainingLoop::handle_non_finite(const TakenStep& taken, const std::string& figures) {
  const auto& training = run_.config.training();
  const std::string found = run_.step->diagnose(run_.step->read(taken.samples, taken.number), run_.config.seed());
  const std::string head = fmt::format("step {} (epoch {}){}", taken.number + 1, taken.epoch, figures);
  if (training.non_finite() != config::Training::SKIP_STEP)
    throw SharedError(ExitCode::kInternal,
                      fmt::format("training became non-finite at {}:\n{}Lower optimizer.learning_rate, set "
                                  "optimizer.clip_norm or data.standardize, or allow training.non_finite: SKIP_STEP.",
                                  head, found));
  state_.set_skipped_steps(state_.skipped_steps() + 1);
  state_.set_skipped_in_a_row(state_.skipped_in_a_row() + 1);
  run_.progress.line(fmt::format("skipped {}\n{}", head, found));
  if (run_.is_main()) {
    auto row = metrics_row("skipped", taken.number + 1, taken.epoch);
    row["found"] = found;
    run_.directory->append_metrics(row);
  }
  if (state_.skipped_in_a_row() > training.max_skipped_in_a_row())
    throw SharedError(ExitCode::kInternal,
                      fmt::format("training stays non-finite: {} steps in a row were skipped "
                                  "(training.max_skipped_in_a_row is {}); the last was {}:\n{}",
                                  state_.skipped_in_a_row(), training.max_skipped_in_a_row(), head, found));
}

void TrainingLoop::save(bool waits) {
  const distributed::PhaseScope phase(distributed::Phase::kSave);
  if (!pending_steps_.empty()) pending_steps_were_finite("");
  // Only rank 0 writes weights and looks at the clock.
  const std::string fingerprint = run_.communicator.all_gather_bytes(state_.best().fingerprint())[0];
  if (state_.has_best()) state_.mutable_best()->set_fingerprint(fingerprint);
  state_.set_seconds(std::stod(run_.communicator.all_gather_bytes(fmt::format("{:f}", run_.seconds()))[0]));
  checkpoints::CheckpointInfo info;
  info.step = state_.steps_done();
  info.epoch = static_cast<int64_t>(state_.steps_done() / run_.plan->steps_per_epoch());
  info.seed = run_.config.seed();
  if (state_.validated_step() == state_.steps_done()) info.score = score_;
  info.config = config::resolved_text(run_.config);
  info.training_state = run::to_bytes(state_, run_.provenance);
  const bool best_is_here = state_.best().step() == state_.steps_done();
  checkpointing_.save(info,
                      run::tensors_of(run_.model->parameters(), *run_.optimizer, run_.moments,
                                      run_.data.shape.modalities, best_is_here ? at::Tensor() : run_.best_values),
                      waits);
}

void TrainingLoop::save_and_stop(const std::string& reason) {
  run_.progress.clear();
  save(/*waits=*/true);
  const std::string head =
      fmt::format("stopped by {} after step {} of {}", reason, state_.steps_done(), run_.plan->total_steps());
  const std::string advice =
      fmt::format("continue, on any number of ranks, with: muster resume {}", run_.options.run_directory);
  if (checkpointing_.newest() == state_.steps_done())
    throw SharedError(
        ExitCode::kRequeue,
        fmt::format("{}{}; {}", head, state_.steps_done() > 0 ? ", which is saved" : ", so there is nothing to save",
                    advice));
  throw SharedError(ExitCode::kIo,
                    fmt::format("{}, but that could not be saved: {}\nThe newest checkpoint is of step {}; {}", head,
                                checkpointing_.last_failure(), checkpointing_.newest(), advice));
}

}  // namespace muster::training
