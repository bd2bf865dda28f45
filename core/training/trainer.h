#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/config/load.h"
#include "distributed/communicator.h"

namespace muster::training {

struct TrainOptions {
  std::string run_directory;
  std::string init_from;  // weights file to start from; empty: the model's own start
  bool dry_run = false;   // check everything, say what would be trained, train nothing, write nothing
  std::string command_line;
};

// Trains the experiment on all ranks of `communicator` and leaves the run directory. Prints progress to standard error and the table of
// results to standard output, on rank 0. Throws the same Error on every rank for anything a person can mend: before the run directory
// exists if config or data are wrong. Collective.
void train(const config::LoadedExperiment& loaded, const TrainOptions& options, distributed::Communicator& communicator);

}  // namespace muster::training
