#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/run/run_directory.h"
#include "core/run/training_state.h"
#include "core/training/data_source.h"
#include "core/training/evaluation.h"
#include "core/training/step.h"

namespace muster::training {

// All of a run that its conclusion needs; nothing is owned.
struct TrainedRun {
  const config::Experiment& config;
  const DataSource& data;
  const data::Split& split;
  const std::vector<batch::FeatureMoments>& moments;
  const batch::BatchReader& reader;
  models::Model& model;
  Step& step;
  distributed::Communicator& communicator;
  run::RunDirectory* directory;  // rank 0; otherwise nullptr
  const Evaluation*
      best_evaluation;  // of the best weights on the validation split, where it is known; otherwise nullptr
  bool is_trial;        // quiet, without weights/last and predictions-valid.csv; weights/best is written now
};

// Puts `best` (flat; undefined: the last weights are the best) into the model, evaluates it on validation and test
// split, and writes weights/last and, if nothing was validated, weights/best, predictions, and at the very end
// result.json, which tells a finished run. Prints the table. `facts`: what else result.json is to say. Collective.
void conclude(const TrainedRun& run, run::TrainingState& state, const std::string& select_by, const at::Tensor& best,
              nlohmann::json facts);

}  // namespace muster::training
