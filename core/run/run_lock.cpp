#include "core/run/run_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "base/text.h"
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

constexpr size_t kDigits = 32;

std::string command_line() {
  std::string text = read_file_if_there("/proc/self/cmdline", 16 << 20).value_or("");
  while (!text.empty() && text.back() == '\0') text.pop_back();
  std::replace(text.begin(), text.end(), '\0', ' ');
  return text;
}

// The texts of a lock file and where they go.
template <typename Holder>
auto texts_of(Holder& holder) {
  return std::array{std::pair{"id", &holder.id},
                    std::pair{"host", &holder.where.host},
                    std::pair{"boot_id", &holder.where.boot_id},
                    std::pair{"job", &holder.job},
                    std::pair{"process_namespace", &holder.where.process_namespace},
                    std::pair{"command", &holder.command},
                    std::pair{"started", &holder.started}};
}

// This process, under a new id.
LockHolder new_holder() {
  LockHolder holder;
  holder.id = make_uuid();
  holder.where = this_process();
  holder.command = command_line().substr(0, 4096);
  const time_t now = std::time(nullptr);
  char started[32] = "";
  struct tm fields;
  if (gmtime_r(&now, &fields)) std::strftime(started, sizeof started, "%Y-%m-%d %H:%M:%S UTC", &fields);
  holder.started = started;
  return holder;
}

std::optional<JobIdentity> identity;

bool operator==(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

}  // namespace

JobIdentity job_identity() { return identity ? *identity : JobIdentity{fmt::format("process {}", getpid()), 0}; }

void set_job_identity(const JobIdentity& job) { identity = job; }

std::string LockHolder::name() const {
  return fmt::format("{} (host {}, process {}, since {})", job, where.host, where.process, started);
}

std::string LockHolder::to_text() const {
  nlohmann::json content = {{"process", where.process},
                            {"process_start", where.process_start},
                            {"restarts", restarts},
                            {"renewed_every_seconds", std::chrono::duration<double>(interval).count()}};
  for (const auto& [name, text] : texts_of(*this)) content[name] = *text;
  return json_text(content, 2) + "\n";
}

std::optional<LockHolder> read_lock(const std::string& path) {
  const auto fail = [&](const std::string& what, int error_number) {
    throw Error(ExitCode::kIo, fmt::format("Cannot lock the run directory: could not {} {}: {}.", what, path,
                                           std::strerror(error_number)));
  };
  Descriptor file;
  for (int attempt = 0; attempt < 5 && file.get() < 0; ++attempt) {  // ESTALE: replaced between look-up and opening
    file.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (file.get() < 0 && errno != ESTALE && errno != EINTR) break;
  }
  if (file.get() < 0 && (errno == ENOENT || errno == ESTALE)) return std::nullopt;
  if (file.get() < 0) fail("open", errno);
  char text[16384];
  struct stat status;
  const ssize_t size = ::fstat(file.get(), &status) == 0 ? ::read(file.get(), text, sizeof text) : -1;
  if (size < 0 && errno == ESTALE) return std::nullopt;
  if (size < 0) fail("read", errno);
  try {
    const auto content = parse_json(std::string_view(text, static_cast<size_t>(size)));
    LockHolder holder;
    for (const auto& [name, field] : texts_of(holder)) content.at(name).get_to(*field);
    content.at("process").get_to(holder.where.process);
    content.at("process_start").get_to(holder.where.process_start);
    content.at("restarts").get_to(holder.restarts);
    const double seconds = std::clamp(content.at("renewed_every_seconds").get<double>(), 0.001, 3600.0);
    holder.interval = milliseconds(std::lround(seconds * 1000));
    holder.renewed = status.st_mtim;
    if (holder.id.size() == kDigits && holder.id.find_first_not_of("0123456789abcdef") == std::string::npos)
      return holder;
  } catch (const nlohmann::json::exception&) {
  }
  throw Error(
      ExitCode::kUsage,
      fmt::format("{} is not a lock that muster wrote. If no job uses this run directory, remove that file.", path));
}

RunLock::RunLock(const std::string& run_directory, const JobIdentity& job, const LockSettings& settings)
    : folder_(run_directory), lock_(place("lock")), job_(job), settings_(settings) {
  try {
    write_own();
    while (!link_own(lock_) && !seize(lock_)) {
    }
    ::unlink(own_.c_str());
    remove_leftovers();
    renewer_ = std::thread([this] { renew_until_stopped(); });
  } catch (...) {
    if (file_.get() >= 0) ::unlink(own_.c_str());
    throw;
  }
}

RunLock::~RunLock() {
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
}

void RunLock::fail(const std::string& path, const std::string& what, int error_number) const {
  const std::string message =
      fmt::format("Cannot lock the run directory: {} {}: {}.", what, path, std::strerror(error_number));
  if (error_number == ENOENT || error_number == ESTALE)
    throw NoRunDirectory(ExitCode::kIo, message);  // ESTALE: NFS, removed by another machine
  throw Error(ExitCode::kIo, message);
}

// Makes our file, under its private name.
void RunLock::write_own() {
  self_ = new_holder();
  self_.job = job_.name;
  self_.restarts = job_.restarts;
  self_.interval = settings_.interval;
  if (!settings_.host.empty()) self_.where.host = settings_.host;
  if (!settings_.boot_id.empty()) self_.where.boot_id = settings_.boot_id;
  own_ = place(".lock.new-" + self_.id);
  file_.reset(::open(own_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (file_.get() < 0) fail(own_, "could not create", errno);
  if (const int error = try_write_all(file_.get(), self_.to_text())) fail(own_, "could not write", error);
  // A lock that survives a power failure has its content.
  if (::fsync(file_.get()) != 0) fail(own_, "could not write", errno);
}

bool RunLock::is_ours(const std::string& path) const {
  const auto holder = read_lock(path);
  return holder && holder->id == self_.id;
}

// The modification time that our file gets now.
timespec RunLock::now_on_file_server() const {
  struct stat status;
  if (::futimens(file_.get(), nullptr) != 0 || ::fstat(file_.get(), &status) != 0) fail(own_, "could not renew", errno);
  return status.st_mtim;
}

// Gives our file this name too, unless there is one. The answer of NFS may be that of a repeated request: what counts
// is what is there.
bool RunLock::link_own(const std::string& path) const {
  if (::link(own_.c_str(), path.c_str()) == 0) return true;
  const int error_number = errno;
  if (is_ours(path)) return true;
  if (error_number != EEXIST) fail(path, "could not create (the file system must have hard links)", error_number);
  return false;
}

// Puts our file in place of that of a holder who is gone. False: things changed meanwhile, begin again. Throws if the
// holder lives. Whoever was about to do so may have died over it: then its claim is seized in the same way.
bool RunLock::seize(const std::string& path) {
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
std::optional<bool> RunLock::is_running(const LockHolder& holder) const {
  if (!same_process_namespace(holder.where, self_.where)) return std::nullopt;
  HostIdentity here = this_process();  // not the machine that a test plays
  here.process = holder.where.process;
  here.process_start = holder.where.process_start;
  return muster::is_running(here);
}

// Why the holder cannot be writing any more; empty: the file has been replaced. Throws if it is alive.
std::string RunLock::why_over(const std::string& path, const LockHolder& holder) const {
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
std::string RunLock::watch(const std::string& path, const LockHolder& holder) const {
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

void RunLock::refuse(const LockHolder& holder) const {
  const auto silent = std::max(age(holder.renewed, now_on_file_server()), milliseconds(0));
  throw RunDirInUse(fmt::format(
      "{} is in use by {}, id {}, which last showed a sign of life {} ago.\nIts command: {}\nTwo jobs cannot write one "
      "run: wait for it, stop it, or choose another --run-dir. If you know that it is over, remove {}",
      folder_, holder.name(), holder.id, text_of(silent), holder.command, lock_));
}

// Files of jobs that died while they wanted the lock.
void RunLock::remove_leftovers() const {
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

void RunLock::renew_until_stopped() {
  std::unique_lock<std::mutex> guard(mutex_);
  while (!stop_.wait_for(guard, self_.interval, [this] { return stopping_; })) {
    guard.unlock();
    // Our file, not whatever is called `lock` by now.
    ::futimens(file_.get(), nullptr);
    try {
      look();
    } catch (const std::exception&) {
      // A file server that does not answer: looked at again next time, and before every commit.
    }
    guard.lock();
  }
}

// Finds out if the lock is still ours.
void RunLock::look() {
  const auto holder = read_lock(lock_);
  if (holder && holder->id == self_.id) return;
  const std::lock_guard<std::mutex> guard(mutex_);
  if (lost_.empty())
    lost_ = holder ? fmt::format("{} has it now", holder->name()) : fmt::format("somebody has removed {}", lock_);
}

bool RunLock::held() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return lost_.empty();
}

void RunLock::check() {
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
void RunLock::release() {
  if (!is_ours(lock_)) return;
  const std::string id = self_.id, claim = claim_on(id);
  write_own();
  if (link_own(claim)) {
    const auto holder = read_lock(lock_);
    if (holder && holder->id == id) ::unlink(lock_.c_str());
    ::unlink(claim.c_str());
  }
  ::unlink(own_.c_str());
}

}  // namespace muster::run
