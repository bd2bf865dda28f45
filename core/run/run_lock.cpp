#include "core/run/run_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "core/run/lock_holder.h"
#include "distributed/watchdog.h"

namespace muster::run {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

std::string text_of(milliseconds time) { return duration_text(std::chrono::duration<double>(time).count()); }

milliseconds age(const timespec& earlier, const timespec& later) {
  return std::chrono::duration_cast<milliseconds>(std::chrono::seconds(later.tv_sec - earlier.tv_sec) +
                                                  std::chrono::nanoseconds(later.tv_nsec - earlier.tv_nsec));
}

std::optional<JobIdentity> identity;

bool operator==(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

}  // namespace

JobIdentity job_identity() { return identity ? *identity : JobIdentity{fmt::format("process {}", getpid()), 0}; }

void set_job_identity(const JobIdentity& job) { identity = job; }

class RunLock::Implementation {
 public:
  Implementation(const std::string& run_directory, const JobIdentity& job, const LockSettings& settings);
  ~Implementation();
  bool held();
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
  LockHolder self_;      // what our file says
  std::string own_;      // a name of our file that nobody else uses
  int descriptor_ = -1;  // of our file, whatever its name
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::string lost_;  // who has the lock instead; empty while it is held
  std::thread renewer_;
};

RunLock::Implementation::Implementation(const std::string& run_directory, const JobIdentity& job,
                                        const LockSettings& settings)
    : folder_(run_directory), lock_(place("lock")), job_(job), settings_(settings) {
  try {
    write_own();
    while (!link_own(lock_) && !seize(lock_)) {
    }
    ::unlink(own_.c_str());
    remove_leftovers();
    renewer_ = std::thread([this] { renew_until_stopped(); });
  } catch (...) {
    if (descriptor_ >= 0) {
      ::unlink(own_.c_str());
      ::close(descriptor_);
    }
    throw;
  }
}

RunLock::Implementation::~Implementation() {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  renewer_.join();
  try {
    release();
  } catch (const std::exception&) {
    // A lock that cannot be removed is taken over by the next job, as that of a process that was killed.
  }
  if (descriptor_ >= 0) ::close(descriptor_);
}

void RunLock::Implementation::fail(const std::string& path, const std::string& what, int error_number) const {
  const std::string message =
      fmt::format("Cannot lock the run directory: {} {}: {}.", what, path, std::strerror(error_number));
  if (error_number == ENOENT || error_number == ESTALE)
    throw NoRunDirectory(ExitCode::kIo, message);  // ESTALE: NFS, removed by another machine
  throw Error(ExitCode::kIo, message);
}

// Makes our file, under its private name.
void RunLock::Implementation::write_own() {
  LockHolder self = new_holder();
  self.job = job_.name;
  self.restarts = job_.restarts;
  self.interval = settings_.interval;
  if (!settings_.host.empty()) self.where.host = settings_.host;
  if (!settings_.boot_id.empty()) self.where.boot_id = settings_.boot_id;
  self_ = self;
  own_ = place(".lock.new-" + self_.id);
  const std::string text = self_.to_text();
  descriptor_ = ::open(own_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail(own_, "could not create", errno);
  // Flushed, so that a lock that survives a power failure has its content.
  if (::write(descriptor_, text.data(), text.size()) != static_cast<ssize_t>(text.size()) || ::fsync(descriptor_) != 0)
    fail(own_, "could not write", errno == 0 ? ENOSPC : errno);
}

bool RunLock::Implementation::is_ours(const std::string& path) const {
  const auto holder = read_lock(path);
  return holder && holder->id == self_.id;
}

// The modification time that our file gets now.
timespec RunLock::Implementation::now_on_file_server() const {
  struct stat status;
  if (::futimens(descriptor_, nullptr) != 0 || ::fstat(descriptor_, &status) != 0) fail(own_, "could not renew", errno);
  return status.st_mtim;
}

// Gives our file this name too, unless there is one. The answer of NFS may be that of a repeated request: what counts
// is what is there.
bool RunLock::Implementation::link_own(const std::string& path) const {
  if (::link(own_.c_str(), path.c_str()) == 0) return true;
  const int error_number = errno;
  if (is_ours(path)) return true;
  if (error_number != EEXIST) fail(path, "could not create (the file system must have hard links)", error_number);
  return false;
}

// Puts our file in place of that of a holder who is gone. False: things changed meanwhile, begin again. Throws if the
// holder lives. Whoever was about to do so may have died over it: then its claim is seized in the same way.
bool RunLock::Implementation::seize(const std::string& path) {
  const auto holder = read_lock(path);
  if (!holder) return false;
  const std::string reason = why_over(path, *holder);
  if (reason.empty()) return false;
  const std::string claim = claim_on(holder->id);
  if (!link_own(claim) && !seize(claim)) return false;
  // One who was slow may have claimed a lock that had already been replaced, its claim with it.
  const auto now = read_lock(path);
  if (!now || now->id != holder->id) {
    ::unlink(claim.c_str());
    return false;
  }
  ::rename(claim.c_str(), path.c_str());
  if (!is_ours(path)) return false;
  if (path == lock_ && settings_.tell)
    settings_.tell(fmt::format("taking over the run directory from {}: {}", holder->name(), reason));
  return true;
}

// nullopt when it is on another machine or in another container, which cannot be asked.
std::optional<bool> RunLock::Implementation::is_running(const LockHolder& holder) const {
  if (!same_process_namespace(holder.where, self_.where)) return std::nullopt;
  HostIdentity here = this_process();  // not the machine that a test plays
  here.process = holder.where.process;
  here.process_start = holder.where.process_start;
  return muster::is_running(here);
}

// Why the holder cannot be writing any more; empty: the file has been replaced. Throws if it is alive.
std::string RunLock::Implementation::why_over(const std::string& path, const LockHolder& holder) const {
  if (holder.job == self_.job && self_.restarts > holder.restarts) return "the same job has been requeued since";
  if (const auto running = is_running(holder)) {
    if (*running) refuse(holder);
    return "that process is gone";
  }
  // Two machines may have the same name: a restart is believed when the lock is old as well.
  if (holder.where.host == self_.where.host && holder.where.boot_id != self_.where.boot_id &&
      age(holder.renewed, now_on_file_server()) >= 5 * holder.interval)
    return "that machine has been restarted since";
  return watch(path, holder);
}

// A machine that cannot be asked. An old lock may be that of a holder whose file server was away until just now: so it
// is watched for a while.
std::string RunLock::Implementation::watch(const std::string& path, const LockHolder& holder) const {
  if (settings_.tell)
    settings_.tell(fmt::format("the run directory is locked by {}; watching for up to {} whether that job is alive",
                               holder.name(), text_of(5 * holder.interval)));
  const auto begin = Clock::now();
  for (;;) {
    std::this_thread::sleep_for(std::max(holder.interval / 4, milliseconds(1)));
    distributed::report_progress();
    const auto now = read_lock(path);
    if (!now || now->id != holder.id) return "";
    if (!(now->renewed == holder.renewed)) refuse(*now);
    const auto watched = Clock::now() - begin;
    const auto unchanged = age(holder.renewed, now_on_file_server());
    if (watched >= 5 * holder.interval || (watched >= 2 * holder.interval && unchanged >= 5 * holder.interval))
      return fmt::format("it has shown no sign of life for {}", text_of(unchanged));
  }
}

void RunLock::Implementation::refuse(const LockHolder& holder) const {
  const auto silent = std::max(age(holder.renewed, now_on_file_server()), milliseconds(0));
  throw RunDirInUse(fmt::format(
      "{} is in use by {}, id {}, which last showed a sign of life {} ago.\nIts command: {}\nTwo jobs cannot write one "
      "run: wait for it, stop it, or choose another --run-dir. If you know that it is over, remove {}",
      folder_, holder.name(), holder.id, text_of(silent), holder.command, lock_));
}

// Files of jobs that died while they wanted the lock.
void RunLock::Implementation::remove_leftovers() const {
  const auto now = now_on_file_server();
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, ignored)) {
    const std::string path = entry.path().string();
    struct stat status;
    if (entry.path().filename().string().rfind(".lock.", 0) != 0 || ::lstat(path.c_str(), &status) != 0) continue;
    bool over = age(status.st_mtim, now) > std::chrono::hours(1);
    try {
      const auto owner = read_lock(path);
      over = over || (owner && is_running(*owner) == false);
    } catch (const Error&) {
      // Not written to the end: by age.
    }
    if (over) ::unlink(path.c_str());
  }
}

void RunLock::Implementation::renew_until_stopped() {
  std::unique_lock<std::mutex> guard(mutex_);
  while (!stop_.wait_for(guard, self_.interval, [this] { return stopping_; })) {
    guard.unlock();
    // Our file, not whatever is called `lock` by now.
    ::futimens(descriptor_, nullptr);
    try {
      look();
    } catch (const std::exception&) {
      // A file server that does not answer: looked at again next time, and before every commit.
    }
    guard.lock();
  }
}

// Finds out if the lock is still ours.
void RunLock::Implementation::look() {
  const auto holder = read_lock(lock_);
  if (holder && holder->id == self_.id) return;
  const std::lock_guard<std::mutex> guard(mutex_);
  if (lost_.empty()) lost_ = holder ? holder->name() + " has it now" : "somebody has removed " + lock_;
}

bool RunLock::Implementation::held() {
  const std::lock_guard<std::mutex> guard(mutex_);
  return lost_.empty();
}

void RunLock::Implementation::check() {
  look();
  const std::lock_guard<std::mutex> guard(mutex_);
  if (!lost_.empty())
    throw Error(
        ExitCode::kIo,
        fmt::format("This job has lost the run directory {}: {}. It was suspended longer than the lock timeout, "
                    "so another job took over. It stops here and writes nothing more.",
                    folder_, lost_));
}

// Takes the lock away as one who takes it over would, under a new id: it must not be another's by the time it is
// removed.
void RunLock::Implementation::release() {
  if (!is_ours(lock_)) return;
  const std::string id = self_.id, claim = claim_on(id);
  ::close(std::exchange(descriptor_, -1));
  write_own();
  if (link_own(claim)) {
    const auto holder = read_lock(lock_);
    if (holder && holder->id == id) ::unlink(lock_.c_str());
    ::unlink(claim.c_str());
  }
  ::unlink(own_.c_str());
}

RunLock::RunLock(const std::string& run_directory, const JobIdentity& job, const LockSettings& settings)
    : implementation_(std::make_unique<Implementation>(run_directory, job, settings)) {}
RunLock::~RunLock() = default;
bool RunLock::held() const { return implementation_->held(); }
void RunLock::check() { implementation_->check(); }

}  // namespace muster::run
