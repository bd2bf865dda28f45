#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <ctime>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "base/host.h"

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
  // Gets one sentence before a long wait, and when a lock that was left behind is taken over. Called by the constructor
  // only.
  std::function<void(const std::string&)> tell;
  // How often the holder shows that it is alive. A job elsewhere waits for up to five of the holder's intervals before
  // it takes a lock over.
  std::chrono::milliseconds interval{15000};
  // Where this process runs; empty: from the system. For tests that play another machine.
  std::string host{}, boot_id{};
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

// What a lock file says about the process that holds it.
struct LockHolder {
  std::string id;  // 32 hexadecimal digits, of this lock alone
  HostIdentity where;
  std::string job, command, started;
  int64_t restarts = 0;
  std::chrono::milliseconds interval{0};  // between renewals
  timespec renewed{};                     // the file's modification time, by the file server's clock

  // "mpirun 4711 (host n1, process 4712, since 2026-01-01 12:00:00 UTC)"
  std::string name() const;
  std::string to_text() const;
};

// nullopt if there is no such file. Asks an NFS server anew. Throws Error(kIo) if it cannot be read, Error(kUsage) if
// it is not a lock that muster wrote.
std::optional<LockHolder> read_lock(const std::string& path);

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
  std::string place(const std::string& name) const { return folder_ + "/" + name; }
  // Whoever creates this file may replace the lock of that holder, and nobody else. Ids are never used twice.
  std::string claim_on(const std::string& id) const { return place(".lock.after-" + id); }
  [[noreturn]] void fail(const std::string& path, const std::string& what, int error_number) const;
  void write_own();
  bool is_ours(const std::string& path) const;
  timespec now_on_file_server() const;
  bool link_own(const std::string& path) const;
  bool seize(const std::string& path);
  std::optional<bool> is_running(const LockHolder& holder) const;
  std::string why_over(const std::string& path, const LockHolder& holder) const;
  std::string watch(const std::string& path, const LockHolder& holder) const;
  [[noreturn]] void refuse(const LockHolder& holder) const;
  void remove_leftovers() const;
  void renew_until_stopped();
  void look();
  void release();

  const std::string folder_;
  const std::string lock_;
  const JobIdentity job_;
  const LockSettings settings_;
  LockHolder self_;  // what our file says
  std::string own_;  // a name of our file that nobody else uses
  Descriptor file_;  // ours, whatever its name
  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::string lost_;  // who has the lock instead; empty while it is held
  std::thread renewer_;
};

}  // namespace muster::run
