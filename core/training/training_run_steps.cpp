#include <cmath>
#include <cstdio>

#include "core/metrics/metrics.h"
#include "core/optim/schedule.h"
#include "core/training/evaluation.h"
#include "core/training/finalize.h"
#include "core/training/results.h"
#include "core/training/same_job.h"
#include "core/training/training_run.h"
#include "distributed/watchdog.h"

// The single steps of a run: training, what is not finite, validation.
namespace muster::training {

nlohmann::json TrainingRun::progress_row(const char* kind, int64_t epoch) const {
  return {{"kind", kind}, {"step", state_.steps_done}, {"epoch", epoch}};
}

void TrainingRun::handle_non_finite(const TakenStep& taken, const std::string& figures) {
  const std::string found =
      step_->diagnose(step_->plan(taken.samples), config_.seed(), static_cast<uint32_t>(taken.number));
  const std::string head =
      "step " + std::to_string(taken.number + 1) + " (epoch " + std::to_string(taken.epoch) + ")" + figures;
  if (config_.training().non_finite() != config::Training::SKIP_STEP)
    throw SharedError(ExitCode::kInternal,
                      "training became non-finite at " + head + ":\n" + found +
                          "Lower optimizer.learning_rate, set optimizer.clip_norm or data.standardize, or allow "
                          "training.non_finite: SKIP_STEP.");
  ++state_.skipped_steps;
  ++state_.skipped_in_a_row;
  progress_.line("skipped " + head + "\n" + found);
  if (is_main()) {
    auto row = progress_row("skipped", taken.epoch);
    row["step"] = taken.number + 1;
    row["found"] = found;
    directory_->append_metrics(row);
  }
  if (state_.skipped_in_a_row > config_.training().max_skipped_in_a_row())
    throw SharedError(ExitCode::kInternal, "training stays non-finite: " + std::to_string(state_.skipped_in_a_row) +
                                               " steps in a row were skipped (training.max_skipped_in_a_row is " +
                                               std::to_string(config_.training().max_skipped_in_a_row()) +
                                               "); the last was " + head + ":\n" + found);
}

bool TrainingRun::logs_step(uint64_t done) const {
  return done % config_.training().log_every_steps() == 0 || done == plan_->total_steps() || done == 1;
}

// True if all steps since the last call were finite. Otherwise the first that was not has been dealt with; none after
// it has changed the weights. figures_of_last: loss and norm of the last step, for the message; empty when they were
// not kept.
bool TrainingRun::check_pending_steps(const std::string& figures_of_last) {
  const auto bad = guard_->poll();
  const auto taken = std::move(pending_steps_);
  pending_steps_.clear();
  if (!bad) {
    state_.skipped_in_a_row = 0;
    return true;
  }
  for (const auto& step : taken)
    if (step.number == *bad) handle_non_finite(step, *bad == taken.back().number ? figures_of_last : "");
  return false;
}

void TrainingRun::train_step(const std::vector<int64_t>& samples, int64_t epoch) {
  if (pending_steps_.empty()) {
    looked_at_ = Clock::now();
    samples_since_look_ = 0;
  }
  samples_since_look_ += samples.size();
  const int64_t sent_before = communicator_.bytes_sent();
  const auto plan = step_->plan(samples);
  const auto outcome = step_->train(plan, config_.seed(), static_cast<uint32_t>(state_.steps_done));
  auto& parameters = model_->parameters();
  // The norm of the summed gradient is the same everywhere, so all ranks agree without asking.
  const at::Tensor norm = optim::l2_norm(parameters.gradients());
  const at::Tensor loss = outcome.total();
  const at::Tensor skip = guard_->check(state_.steps_done, loss, norm);
  pending_steps_.push_back({state_.steps_done, epoch, samples});
  // Looking makes the host wait for a GPU. Whoever skips steps must know at once; otherwise a bad step holds the
  // weights where they are.
  const bool logs = logs_step(state_.steps_done + 1);
  const bool looks = compute_.device.is_cpu() || logs || config_.training().non_finite() == config::Training::SKIP_STEP;
  if (looks && !check_pending_steps(": loss " + std::to_string(loss.item<double>()) + ", gradient norm " +
                                    std::to_string(norm.item<double>()))) {
    ++state_.steps_done;
    return;
  }
  optim::clip_gradients(parameters, norm, config_.optimizer().clip_norm());
  const double rate =
      optim::learning_rate(config_.optimizer(), state_.steps_done, plan_->total_steps(), plan_->steps_per_epoch());
  optimizer_->step(rate, looks ? at::Tensor() : skip);
  model_->project_parameters();
  ++state_.steps_done;
  if (!looks) return;

  const double speed =
      static_cast<double>(samples_since_look_) / std::chrono::duration<double>(Clock::now() - looked_at_).count();
  progress_.step(state_.steps_done, plan_->total_steps(), epoch, config_.training().epochs(), loss.item<double>(),
                 speed);
  if (!is_main() || !logs) return;
  auto row = progress_row("train", epoch);
  row["loss"] = loss.item<double>();
  row["terms"] = to_json(outcome.terms());
  row["learning_rate"] = rate;
  row["gradient_norm"] = norm.item<double>();
  row["samples_per_second"] = speed;
  row["microbatches"] = plan.filled_counts();
  row["bytes_sent"] = communicator_.bytes_sent() - sent_before;
  if (const auto temperature = model_->temperature()) row["temperature"] = *temperature;
  directory_->append_metrics(row);
}

void TrainingRun::validate(int64_t epoch) {
  if (split_.valid.empty() || state_.validated_step == state_.steps_done) return;
  const distributed::PhaseScope phase(distributed::Phase::kEvaluation);
  state_.validated_step = state_.steps_done;
  if (!pending_steps_.empty()) check_pending_steps("");
  require_same_weights(model_->parameters(), moments_, communicator_);
  const auto evaluation =
      evaluate(*step_, *reader_, communicator_, split_.valid, config_.evaluation().batch_size(), config_.seed(), true);
  const double value = select_by_ == "loss" ? evaluation.loss : metrics::metric_value(evaluation.metrics, select_by_);
  const double gain = metrics::higher_is_better(select_by_) ? value - state_.best_value : state_.best_value - value;
  // A first value is always an improvement, a NaN never.
  score_ = {select_by_, value, metrics::higher_is_better(select_by_)};
  const bool better =
      !std::isnan(value) && (std::isnan(state_.best_value) || gain > config_.evaluation().min_improvement());
  if (better || !best_values_.defined()) {
    state_.best_value = value;
    state_.best_step = state_.steps_done;
    state_.best_epoch = epoch;
    best_values_ = model_->parameters().values().clone();
    best_evaluation_ = evaluation;
    state_.has_best = true;
    state_.evaluations_without_improvement = 0;
  } else {
    ++state_.evaluations_without_improvement;
  }
  char text[160];
  std::snprintf(text, sizeof text, "epoch %ld  step %lu  valid loss %.4f  %s %.4f%s", epoch, state_.steps_done,
                evaluation.loss, select_by_.c_str(), value,
                state_.best_step == state_.steps_done ? "  (best so far)" : "");
  progress_.line(text);
  auto row = progress_row("valid", epoch);
  row.update(to_json(evaluation));
  row["best"] = state_.best_step == state_.steps_done;
  distributed::run_on_all_ranks(communicator_, [&] {
    if (!is_main()) return;
    directory_->append_metrics(row);
    if (row["best"] && !trial_) write_best_weights(model_->parameters().values(), state_.steps_done);
  });
  const uint32_t patience = config_.evaluation().patience();
  state_.stopped_early = patience > 0 && state_.evaluations_without_improvement >= patience;
  if (trial_) trial_->on_validation(row);
}

}  // namespace muster::training
