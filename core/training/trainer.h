#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/config/load.h"
#include "core/run/run_lock.h"
#include "core/training/compute.h"
#include "core/training/data_source.h"
#include "distributed/communicator.h"

namespace muster::training {

enum class Begin {
  kNew,     // the run directory must not exist
  kResume,  // it must
  kAuto,    // either
};

struct TrainOptions {
  std::string run_directory;
  Begin begin = Begin::kNew;
  bool force = false;     // continue a run although something has changed that changes its results
  std::string init_from;  // weights file to start from; empty: the model's own start
  bool dry_run = false;   // check everything, say what would be trained, train nothing, write nothing
  double time_limit = 0;  // seconds; the run saves and stops at the first step that ends later; 0: none
  std::string command_line;
};

// Trains the experiment on all ranks of `communicator` and leaves the run directory: from the start, or from its newest
// whole checkpoint on, whatever number of ranks wrote that. Prints progress to standard error and the table of results
// to standard output, on rank 0. Throws the same Error on every rank for anything a person can fix: before the run
// directory exists if config or data are wrong; SharedError(kRequeue) when the run was asked to stop (stop.h) or its
// time was up: it is saved then, and continues by Begin::kResume. Collective.
void train(const config::LoadedExperiment& loaded, const TrainOptions& options,
           distributed::Communicator& communicator);

// Trains one experiment after another in the same process, quietly. Otherwise as train(), with the same weights, but
// without the files that nobody reads in a trial: TensorBoard events, weights/last and the checkpoint at the
// end. weights/best comes with the result. Nor are a frozen encoder's features kept: it runs in the step, which rounds
// differently.
class InProcessTrainer {
 public:
  // A trial of a search judges a configuration by the validation split alone, and never sees the test split.
  enum class Splits { kValidation, kValidationAndTest };

  // Sets this process up for all of them: device, cores, threads. `training`: of the experiment that they vary. world:
  // all ranks of the process's job; group: the ranks that train together here. Both must outlive it. Collective over
  // world.
  InProcessTrainer(const config::Training& training, distributed::Communicator& world,
                   distributed::Communicator& group);

  // on_validation gets, on every rank of the group, the row of metrics.jsonl of each validation, and may end the trial
  // by an exception, the same on every rank; the run directory stays unfinished then. Throws as train(), and as
  // SharedRunDirInUse when another job is at it. Collective over the group.
  void train(const config::LoadedExperiment& loaded, const TrainOptions& options, Splits splits,
             const std::function<void(const nlohmann::json& row)>& on_validation);

 private:
  distributed::Communicator& group_;
  Compute compute_;
  std::unique_ptr<distributed::Communicator> gpus_;
  DatasetCache datasets_;
};

}  // namespace muster::training
