#pragma once

#include <cstdint>
#include <string>

namespace muster::launcher {

// What Slurm says of the job that asks.
enum class JobState {
  kRunning,    // it can be requeued
  kCancelled,  // somebody has cancelled it
  kTimedOut,   // its time limit was reached before it had ended
  kPreempted,  // it makes room for another
  kQueued,     // Slurm has requeued it by itself
  kUnknown,    // Slurm does not answer
};

// From the answer of `scontrol show job -o`. restarts: how often it had been requeued when this process began.
JobState job_state(const std::string& shown, int64_t restarts);

struct Decision {
  enum class Action { kDone, kRequeue, kStop, kNothing };
  Action action = Action::kStop;
  std::string reason;  // one sentence without its full stop
};

// What becomes of a job whose srun ended with `exit_code`. `starts`: as starts_without_progress().
Decision decide(int exit_code, JobState state, int starts, int max_restarts);

// Records that the job of this process starts. Throws Error(kUsage) when srun cannot start MPI programs by
// --mpi=`mpi`.
void begin_job(const std::string& run_directory, const std::string& mpi);

// Records that it has ended, and requeues it when another start can make progress. Returns the exit code for the job: 0
// when the run is finished or requeued.
int end_job(const std::string& run_directory, int exit_code, int max_restarts);

}  // namespace muster::launcher
