#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "checkpoints/saver.h"
#include "core/config/experiment.pb.h"
#include "core/run/progress.h"
#include "core/run/run_directory.h"

namespace muster::run {

// What the experiment says is to be kept: while the run lasts, and of a finished one.
checkpoints::Retention retention_of(const config::Checkpoints& settings);
checkpoints::Retention retention_when_finished(const config::Checkpoints& settings);

// When a run saves, when it stops, and what happens when saving fails. All ranks hold one and call alike; the decisions
// are the same on all of them.
class Checkpointing {
 public:
  struct Settings {
    config::Checkpoints checkpoints;
    std::string run_directory;
    uint64_t steps_per_epoch = 1;
    double time_limit = 0;                          // seconds after which the run stops; 0: none
    std::chrono::steady_clock::time_point started;  // what they count from
  };
  // directory: on rank 0, otherwise nullptr. newest: step of the checkpoint that the run continues from; 0 for a
  // new run.
  // All must outlive this.
  Checkpointing(const Settings& settings, uint64_t newest, RunDirectory* directory,
                distributed::Communicator& communicator, Progress& progress);

  struct Decision {
    bool save = false;
    std::string stop;  // why the run must stop now; empty: it continues
  };
  // Between two steps, after `step` steps: the ranks exchange who was asked to stop, and how the save in flight stands.
  // Throws SharedError(kIo) when more saves have failed in a row than allowed. Collective.
  Decision between_steps(uint64_t step);

  // Where there will be saves during training, makes room for the copy that they take, so that the first one does not
  // wait for it. `tensors` as for save(), without their values.
  void prepare(const std::vector<checkpoints::NamedTensor>& tensors);
  // Saves, unless this very step is saved already or on its way. waits: returns when nothing is in flight any more, and
  // needs no memory for a copy. Throws as between_steps(). Collective.
  void save(const checkpoints::CheckpointInfo& info, const std::vector<checkpoints::NamedTensor>& tensors, bool waits);

  // Step of the newest committed checkpoint; 0: none.
  uint64_t newest() const { return newest_; }
  // Why the last save failed; empty when it did not.
  const std::string& last_failure() const { return last_failure_; }
  // {"saved", "failed", "stall_seconds", "longest_stall_seconds", "bytes"}, of this job.
  nlohmann::json summary() const;

 private:
  using Clock = std::chrono::steady_clock;
  void note(const checkpoints::SaveOutcome& outcome);

  Settings settings_;
  RunDirectory* directory_;
  distributed::Communicator& communicator_;
  Progress& progress_;
  checkpoints::CheckpointSaver saver_;
  Clock::time_point last_begun_ = Clock::now();
  uint64_t begun_step_;  // of the last save begun
  uint64_t newest_;
  std::string last_failure_;
  uint32_t failed_in_a_row_ = 0;
  int64_t saved_ = 0, failed_ = 0;
  uint64_t bytes_ = 0;
  double stall_ = 0, longest_stall_ = 0;
};

}  // namespace muster::run
