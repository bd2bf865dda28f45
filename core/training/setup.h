#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/batch/plan.h"
#include "core/optim/adamw.h"
#include "core/run/progress.h"
#include "core/run/resume.h"
#include "core/run/run_directory.h"
#include "core/run/training_state.h"
#include "core/training/compute.h"
#include "core/training/data_source.h"
#include "core/training/step.h"
#include "core/training/trainer.h"

namespace muster::training {

// How a run that another program watches (a trial of a search, a cell of a study) differs from one that a person has
// started.
struct RunPolicy {
  // Progress on standard error and the table of results on standard output.
  bool shows_progress = true;
  // false: only the files that resuming and reading the result need: no TensorBoard events, weights/last or
  // checkpoint at the end, and weights/best only at the end.
  bool writes_all_files = true;
  // false: the test split is empty, and there must be a validation split.
  bool sees_test_split = true;
  // Gets the row of metrics.jsonl of each validation, on every rank, and may end the run by throwing.
  std::function<void(const nlohmann::json& row)> on_validation = [](const nlohmann::json&) {};
};

// All parts of one run. Made by prepare(), used by the loop, concluded by conclude().
struct TrainingRun {
  // All must outlive it.
  TrainingRun(const config::LoadedExperiment& loaded, const TrainOptions& options, const RunPolicy& policy,
              DatasetCache& datasets, distributed::Communicator& communicator, const Compute& compute)
      : loaded(loaded),
        config(loaded.experiment),
        options(options),
        policy(policy),
        datasets(datasets),
        communicator(communicator),
        compute(compute),
        progress(communicator.rank() == 0 && policy.shows_progress) {}

  bool is_main() const { return communicator.rank() == 0; }
  bool is_finished() const { return state.steps_done() >= plan->total_steps() || state.stopped_early(); }
  // Of all jobs of the run so far.
  double seconds() const { return earlier_seconds + std::chrono::duration<double>(Clock::now() - started).count(); }
  // Writes weights/best.safetensors; on rank 0. values: flat, as model->parameters().values().
  void write_best_weights(const at::Tensor& values, uint64_t step);

  using Clock = std::chrono::steady_clock;
  const config::LoadedExperiment& loaded;
  const config::Experiment& config;
  const TrainOptions& options;
  const RunPolicy& policy;
  DatasetCache& datasets;
  distributed::Communicator& communicator;
  const Compute& compute;
  run::Progress progress;
  const Clock::time_point started = Clock::now();
  double earlier_seconds = 0;

  // Data, and what is computed with it.
  DataSource data;
  data::Split split;
  std::vector<batch::FeatureMoments> moments;
  std::set<std::string> frozen;  // modalities whose encoders run once (frozen_features.h) and not in the step
  std::shared_ptr<const data::Dataset> with_frozen;  // `data` with what these encoders give; nullptr: not known yet
  std::unique_ptr<batch::BatchReader> reader;
  std::optional<batch::TrainingPlan> plan;
  std::unique_ptr<models::Model> model;
  std::unique_ptr<optim::AdamW> optimizer;
  std::unique_ptr<Step> step;
  std::string select_by;  // the metric that chooses the best weights

  // Where the run stands, and where it came from.
  std::optional<run::RunDirectory> directory;  // on rank 0
  bool resumes = false;
  bool has_checkpoints = false;  // perhaps damaged ones
  run::InitFrom init_from;
  std::vector<std::string> encoder_notes;  // on rank 0, where the run begins: how raw samples are prepared
  nlohmann::json encoder_hashes;           // on rank 0: of the pretrained encoders, by modality; null: there are none
  run::ResumePoint resume_point;           // its tensors are gone once restored
  run::Provenance provenance;
  run::TrainingState state;
  at::Tensor best_values;  // flat, as the parameters; undefined until the first validation
};

// Opens and checks everything and makes all parts of the run, restored from its newest checkpoint where it resumes; but
// for reader and step where run.frozen has something. Writes nothing. Throws as train(). Collective.
void prepare(TrainingRun& run);

// Makes the run's reader and step. Throws Error(kBadConfig) when the data does not fit where data_on_device wants it.
// Collective.
void make_step(TrainingRun& run);

// What is about to be trained, in words.
std::string summary(const TrainingRun& run);

// Whether the run that `run` resumes has left its result already. Collective.
bool is_concluded(TrainingRun& run);

// Makes the run directory, or readies the one that is there for what follows its newest checkpoint. Collective.
void open_for_writing(TrainingRun& run);

}  // namespace muster::training
