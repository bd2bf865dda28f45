#pragma once

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/optim/adamw.h"
#include "core/run/checkpointing.h"
#include "core/training/compute.h"
#include "core/training/data_source.h"
#include "core/training/evaluation.h"
#include "core/training/finite_guard.h"
#include "core/run/progress.h"
#include "core/run/resume.h"
#include "core/run/run_directory.h"
#include "core/training/step.h"
#include "core/training/trainer.h"
#include "core/training/training_plan.h"
#include "core/run/training_state.h"

namespace muster::training {

// What makes a run a trial (InProcessTrainer).
struct TrialSettings {
  DatasetCache& datasets;
  bool sees_test_split;
  const std::function<void(const nlohmann::json& row)>& on_validation;
};

// One run from checked inputs to result.json.
class TrainingRun {
 public:
  // All must outlive it. trial: null for a run of its own.
  TrainingRun(const config::LoadedExperiment& loaded, const TrainOptions& options,
              distributed::Communicator& communicator, const Compute& compute, const TrialSettings* trial)
      : loaded_(loaded),
        config_(loaded.experiment),
        options_(options),
        communicator_(communicator),
        progress_(communicator.rank() == 0 && !trial),
        compute_(compute),
        trial_(trial) {}

  // As train(). Once.
  void run();

 private:
  using Clock = std::chrono::steady_clock;
  bool is_main() const { return communicator_.rank() == 0; }
  void at_run_directory(const std::function<void()>& work);
  void open_run_directory();
  void prepare();
  void check_data();
  void require_same_beginning() const;
  void restore_weights();
  void restore_progress();
  std::string summary() const;
  nlohmann::json description() const;
  void begin_run();
  bool is_finished() const { return state_.steps_done >= plan_->total_steps() || state_.stopped_early; }
  bool nothing_is_left() const;
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
  bool check_pending_steps(const std::string& figures_of_last);
  void validate(int64_t epoch);
  void save();
  void settle();
  void write_best_weights(const at::Tensor& values, uint64_t step);
  [[noreturn]] void stop(const std::string& reason);
  nlohmann::json progress_row(const char* kind, int64_t epoch) const;
  double seconds() const { return earlier_seconds_ + std::chrono::duration<double>(Clock::now() - started_).count(); }

  const config::LoadedExperiment& loaded_;
  const config::Experiment& config_;
  const TrainOptions& options_;
  distributed::Communicator& communicator_;
  run::Progress progress_;
  Clock::time_point started_ = Clock::now();
  const Compute& compute_;
  const TrialSettings* trial_;

  DataSource data_;
  data::Split split_;
  std::vector<batch::FeatureMoments> moments_;
  std::unique_ptr<batch::BatchReader> reader_;
  std::unique_ptr<models::Model> model_;
  std::unique_ptr<optim::AdamW> optimizer_;
  std::optional<TrainingPlan> plan_;
  std::unique_ptr<Step> step_;
  std::optional<FiniteGuard> guard_;
  std::vector<TakenStep> pending_steps_;  // steps since the guard was last asked
  Clock::time_point looked_at_;      // when the first of them began
  uint64_t samples_since_look_ = 0;
  std::optional<run::RunDirectory> directory_;

  bool resumes_ = false;
  run::InitFrom init_from_;
  run::ResumePoint point_;  // only its changes once restored
  double earlier_seconds_ = 0;
  run::TrainingState state_;
  run::Provenance provenance_;
  std::optional<run::Checkpointing> checkpointing_;
  std::string select_by_;
  checkpoints::Score score_;                   // of the weights as they are
  at::Tensor best_values_;                     // flat copy of the parameters; undefined until the first validation
  std::optional<Evaluation> best_evaluation_;  // of the validation split; none when an earlier job made it
};

}  // namespace muster::training
