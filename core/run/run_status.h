#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace muster::run {

enum class RunState {
  kPrepared,  // waits for a job to begin it
  kRunning,   // a job holds the lock and renews it
  kLost,      // a job holds the lock, but is gone or does not renew it any more
  kStopped,   // nobody holds the lock; not finished
  kFinished,
};

// The state of a run, from its directory alone.
struct RunStatus {
  RunState state = RunState::kPrepared;
  std::string holder;         // running, lost: "Slurm job 12 of cluster (host n1, process 4712, since ...)"
  double silent_seconds = 0;  // since the lock was renewed
  uint64_t step = 0, total_steps = 0, steps_per_epoch = 0;  // 0: unknown
  int64_t epoch = 0;
  std::optional<double> samples_per_second, seconds_left, loss;
  std::string best_name;  // of the value that picks the best weights on the validation split
  std::optional<double> best_value;
  uint64_t best_step = 0;
  std::optional<uint64_t> checkpoint_step;  // of the newest checkpoint
  double checkpoint_age = 0;                // seconds
  std::vector<std::string> hosts;           // of the last start
  int64_t ranks = 0;
  int64_t begun = 0;         // how many jobs have worked on it
  std::string last_message;  // last line of the newest log

  // In total; 0: unknown.
  uint64_t epochs() const { return steps_per_epoch > 0 ? (total_steps + steps_per_epoch - 1) / steps_per_epoch : 0; }
};

// Reads it while others may be writing: what is incomplete or disappears meanwhile counts as missing. Changes nothing.
// Throws Error(kUsage) when `run_directory` is not a run directory.
RunStatus run_status(const std::string& run_directory);

// The same for programs: keys as above, null for what is unknown.
nlohmann::json to_json(const RunStatus& status);

// "running"; "stopped" ...
std::string name_of(RunState state);

}  // namespace muster::run
