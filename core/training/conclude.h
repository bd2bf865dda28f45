#pragma once

#include <nlohmann/json_fwd.hpp>

#include "core/run/results.h"
#include "core/training/setup.h"

namespace muster::training {

// After the last step: puts the best weights (without validation: the last ones) into the model, evaluates it on
// validation and test split, and writes weights, predictions, and at the very end result.json, by which a run is known
// to be finished. Prints the table. best_evaluation: of the best weights on the validation split; nullptr: not known.
// facts: what else result.json is to say, "checkpoints" among it. Collective.
void conclude(TrainingRun& run, const run::Evaluation* best_evaluation, const nlohmann::json& facts);

}  // namespace muster::training
