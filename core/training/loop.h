#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/run/checkpointing.h"
#include "core/training/evaluation.h"
#include "core/training/finite_guard.h"
#include "core/training/setup.h"

namespace muster::training {

// The training loop of a prepared run whose directory is open.
class TrainingLoop {
 public:
  // `run` must outlive it.
  explicit TrainingLoop(TrainingRun& run);

  // Trains from the step where the run stands to its end: run.state and run.best_values say what came of it. Throws
  // SharedError(kRequeue), with everything saved, when the run was asked to stop. Collective; once.
  void run();

  // Of the best weights on the validation split; nullptr when an earlier job made it, or there is none.
  const Evaluation* best_evaluation() const { return best_evaluation_ ? &*best_evaluation_ : nullptr; }
  nlohmann::json checkpoint_summary() const { return checkpointing_.summary(); }

 private:
  // What the host knows of a step once it has looked.
  struct StepFigures {
    double loss;
    std::vector<std::pair<std::string, double>> terms;
    double learning_rate;
    double gradient_norm;
    double samples_per_second;  // since the last look
    int64_t bytes_sent;
  };
  struct TakenStep {
    uint64_t number;  // from 0
    int64_t epoch;
    std::vector<int64_t> samples;
  };
  std::optional<StepFigures> train_step(const batch::LoadedBatch& batch);
  void log(const batch::LoadedBatch& batch, const StepFigures& figures);
  bool logs(uint64_t steps_done) const;
  bool evaluation_is_due(int64_t epoch) const;
  void validate(int64_t epoch);
  bool keep_if_best(const Evaluation& evaluation, double value, int64_t epoch);
  bool pending_steps_were_finite(const std::string& figures_of_last);
  void handle_non_finite(const TakenStep& taken, const std::string& figures);
  void save(bool waits);
  [[noreturn]] void save_and_stop(const std::string& reason);
  nlohmann::json metrics_row(const char* kind, uint64_t step, int64_t epoch) const;

  TrainingRun& run_;
  run::TrainingState& state_;
  run::Checkpointing checkpointing_;
  FiniteGuard guard_;
  std::vector<TakenStep> pending_steps_;                // since the host last looked at the guard
  TrainingRun::Clock::time_point first_pending_began_;  // when the first of them began
  int64_t pending_samples_ = 0;
  checkpoints::Score score_;  // of the weights as they are
  std::optional<Evaluation> best_evaluation_;
};

}  // namespace muster::training
