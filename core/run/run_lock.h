#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"

namespace muster::run {

// The job that this process belongs to, as its scheduler calls it.
struct JobIdentity {
  std::string name;      // "Slurm job 123 of cluster", "mpirun 4711", "process 4711"
  int64_t restarts = 0;  // how often the scheduler has requeued this very job
};
// What set_job_identity() was given last, which the program calls before anything else; until then "process 4711".
JobIdentity job_identity();
void set_job_identity(const JobIdentity& job);

struct LockSettings {
  // How often the holder shows that it is alive. A job elsewhere waits for up to five of the holder's intervals before
  // it takes a lock over.
  std::chrono::milliseconds interval{15000};
  // Gets one sentence before a long wait, and when a lock that was left behind is taken over. Called by the constructor
  // only.
  std::function<void(const std::string&)> tell;
  // Where this process runs; empty: from the system. For tests that play another machine.
  std::string host;
  std::string boot_id;
};

// There is no such run directory, or it was removed while its lock was taken.
class NoRunDirectory : public Error {
 public:
  using Error::Error;
};

// There is a run already, or another job works on it.
class RunDirInUse : public Error {
 public:
  explicit RunDirInUse(const std::string& message) : Error(ExitCode::kUsage, message) {}
};
// The same, thrown by every rank.
class SharedRunDirInUse : public SharedError {
 public:
  explicit SharedRunDirInUse(const std::string& message) : SharedError(ExitCode::kUsage, message) {}
};

// The right to write a run directory: a file `lock` in it, which names its holder. For one process of a job, rank 0,
// for as long as it writes there. Works on NFS: a lock appears by link(), and the holder renews its modification time.
// A lock whose holder is gone is taken over: at once when that is certain (a process of this machine, an earlier start
// of the same Slurm job), otherwise after nobody has renewed it for five intervals by the file server's own clock. If
// several jobs want a lock that was left behind, one gets it.
class RunLock {
 public:
  // Waits while it finds out whether a holder on another machine is alive, by default up to 75 s. Throws RunDirInUse
  // naming the holder if it is, NoRunDirectory if there is no directory, Error(kIo) if the file system fails.
  explicit RunLock(const std::string& run_directory, const JobIdentity& job = job_identity(),
                   const LockSettings& settings = {});
  // Removes the lock if it is still ours.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // False once this process has lost the lock: it was suspended for so long that another job took over, or somebody
  // removed the file. As of the last renewal; never true again.
  bool held() const;
  // Reads the file now. Throws Error(kIo) naming the new holder if the lock is no longer ours: nothing may be written
  // to the run then. To be called before every commit.
  void check();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace muster::run
