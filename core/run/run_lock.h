#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"

namespace muster::run {

// The job that this process belongs to, as its scheduler calls it.
struct SchedulerJob {
  std::string name;      // "Slurm job 123 of cluster", "mpirun 4711", "process 4711"
  int64_t restarts = 0;  // how often Slurm has queued this very job again
};
SchedulerJob scheduler_job();

struct LockSettings {
  // How often the holder shows that it lives. A job elsewhere waits for up to five of the holder's intervals before it
  // takes a lock over.
  std::chrono::milliseconds interval{15000};
  // Told one sentence before a long wait, and when a lock that was left behind is taken over. Called by the constructor
  // only.
  std::function<void(const std::string&)> tell;
  // Where this process runs; empty: asked of the system. For tests, which play another machine.
  std::string host;
  std::string boot_id;
};

// There is no such run directory, or it was removed while its lock was taken.
class NoRunDirectory : public Error {
 public:
  using Error::Error;
};

// There is a run already, or another job is at it.
class RunDirInUse : public Error {
 public:
  explicit RunDirInUse(const std::string& message) : Error(ExitCode::kUsage, message) {}
};
// The same, thrown by every rank.
class SharedRunDirInUse : public SharedError {
 public:
  explicit SharedRunDirInUse(const std::string& message) : SharedError(ExitCode::kUsage, message) {}
};

// The right to write a run directory: a file `lock` in it, which says who has it. For one process of a job, rank 0, as
// long as it writes there. Works on NFS: a lock appears by link(), and the holder renews its modification time. A lock
// whose holder is gone is taken over: at once when that can be known (a process of this machine, an earlier start of
// the same Slurm job), otherwise after nobody has renewed it for five intervals by the file server's own clock. Of
// several that want a lock left behind, one gets it.
class RunLock {
 public:
  // Waits while it has to find out if a holder on another machine lives, by default up to 75 s. Throws RunDirInUse that
  // names the holder when it does, Error(kIo) when the file system does not do what it must, as NoRunDirectory where
  // there is no directory.
  explicit RunLock(const std::string& run_directory, const SchedulerJob& job = scheduler_job(),
                   const LockSettings& settings = {});
  // Removes the lock if it is still ours.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // False once this process was found to have lost the lock: it stood still for so long that another job took it over,
  // or somebody removed it. As of the last renewal; never true again.
  bool held() const;
  // Looks at the file now. Throws Error(kIo) that says who has the run now if it is not ours any more: nothing may be
  // written to it then. To be called before every commit.
  void check();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace muster::run
