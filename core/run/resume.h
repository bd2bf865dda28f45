#pragma once

#include <optional>
#include <string>

#include "checkpoints/checkpoint.h"
#include "core/config/experiment.pb.h"
#include "core/run/progress.h"
#include "core/run/training_state.h"
#include "distributed/communicator.h"

namespace muster::run {

// Where a run continues from.
struct ResumePoint {
  std::optional<checkpoints::LoadedCheckpoint> loaded;  // nothing: no checkpoint was committed, the run starts again
  TrainingState state;
  std::vector<std::string> changes;  // those that do not change results, and those that --force allows: for the record
};

// Finds the newest whole checkpoint of a run and judges whether `now` and `provenance` may continue it. Reports what
// is damaged, and what has changed. Throws SharedError: kBadConfig or kBadData with all differences that would change
// results, unless `force`; kBadData when there are checkpoints, but none is whole. Collective.
ResumePoint find_resume_point(const std::string& run_directory, const config::Experiment& now,
                              const Provenance& provenance, bool force, distributed::Communicator& communicator,
                              Progress& progress);

}  // namespace muster::run
