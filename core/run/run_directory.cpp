#include "core/run/run_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"

namespace muster::run {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();
constexpr const char* kFolders[] = {"weights", "checkpoints", "logs"};

[[noreturn]] void fail(const std::string& path, const std::string& what, const std::string& reason) {
  throw Error(ExitCode::kIo, fmt::format("{}: {}: {}", path, what, reason));
}

void open_to_append(Descriptor& file, const std::string& path) {
  file.reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666));
  if (file.get() < 0) fail(path, "cannot open", std::strerror(errno));
}

// All of the row, or nothing that is left behind.
void append(const Descriptor& file, const nlohmann::json& row, const std::string& path) {
  const off_t before = ::lseek(file.get(), 0, SEEK_END);
  const int error = try_write_all(file.get(), json_text(row) + "\n");
  if (error == 0) return;
  if (::ftruncate(file.get(), before) != 0) {
    // The row stays torn; continue_after() removes it.
  }
  fail(path, "cannot write", std::strerror(error));
}

// Where the rows up to `step` end.
size_t end_of_rows(const std::string& text, uint64_t step, const std::string& path) {
  size_t end = 0, bad_at = std::string::npos;
  int64_t line_number = 0;
  for (size_t start = 0; start < text.size();) {
    const size_t line_end = text.find('\n', start);
    if (line_end == std::string::npos) break;
    ++line_number;
    const auto row = parse_json(std::string_view(text).substr(start, line_end - start));
    if (!row.is_object() || !row.contains("step") || !row["step"].is_number_unsigned()) {
      if (bad_at == std::string::npos) bad_at = line_number;
    } else if (row["step"].get<uint64_t>() <= step) {
      if (bad_at != std::string::npos)
        throw Error(ExitCode::kBadData,
                    fmt::format("{}:{}: is not a row of metrics. Repair the line or move the file away; a resumed run "
                                "adds to it",
                                path, bad_at));
      end = line_end + 1;
    } else {
      break;
    }
    start = line_end + 1;
  }
  return end;
}

// Temporary files of AtomicFile whose writer was killed. Nobody writes here but the holder of the lock.
void sweep_temporary_files(const fs::path& folder) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name[0] == '.' && name.find(".tmp-") != std::string::npos && entry.is_regular_file(ignored))
      fs::remove(entry.path(), ignored);
  }
}

// Makes a run directory that appears whole or not at all.
void make_whole(const std::string& path, const std::function<void(const std::string& building)>& fill) {
  if (make_folder_atomically(path, fill)) return;
  throw RunDirInUse(
      fmt::format("{}: another job has begun this run at the same moment. Wait for it, stop it, or choose "
                  "another --run-dir",
                  path));
}

}  // namespace

InitFrom recorded_init_from(const std::string& run_directory) {
  if (run_dir_state(run_directory) == RunDirState::kPrepared) return {};
  const std::string file = run_directory + "/environment.json";
  const auto environment = read_json_object(file);
  if (member_of(environment, "init_from").is_null()) return {};
  return {require_text(environment, "init_from.path", file), require_text(environment, "init_from.sha256", file)};
}

RunDirState run_dir_state(const std::string& path) {
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(path, ignored))) return RunDirState::kNothing;
  if (fs::exists(path + "/config.txtpb", ignored))
    return fs::exists(path + "/result.json", ignored) ? RunDirState::kFinished : RunDirState::kBegun;
  if (!fs::exists(path + "/submission.json", ignored)) return RunDirState::kOther;
  for (const auto& entry : fs::directory_iterator(path, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool empty =
        (name == "weights" || name == "checkpoints" || name == "metrics.jsonl") && fs::is_empty(entry.path(), ignored);
    const bool known = name[0] == '.' || name == "submission.json" || name == "job.sbatch" || name == "logs" ||
                       name == "lock" || name == "environment.json";
    if (!empty && !known) return RunDirState::kOther;
  }
  return RunDirState::kPrepared;
}

void require_new_run_directory(const std::string& path) {
  const RunDirState place = run_dir_state(path);
  if (place == RunDirState::kNothing || place == RunDirState::kPrepared) return;
  if (place == RunDirState::kBegun)
    throw RunDirInUse(fmt::format(
        "{0} exists already and holds an unfinished run. To continue it: muster resume {0}, or the same command with "
        "--resume auto. To begin anew: another --run-dir, or remove that one first",
        path));
  const std::string message =
      fmt::format("{} exists already{}. A run is never overwritten: choose another --run-dir, or remove that one first",
                  path, place == RunDirState::kFinished ? " and holds a finished run" : "");
  if (place == RunDirState::kFinished) throw RunDirInUse(message);
  throw Error(ExitCode::kUsage, message);
}

void prepare_run_directory(const std::string& path, const std::vector<std::pair<std::string, std::string>>& files) {
  const auto write_into = [&](const std::string& folder) {
    make_folders(folder + "/logs");
    for (const auto& [name, bytes] : files) write_file_atomically(folder + "/" + name, bytes);
  };
  run_dir_state(path) == RunDirState::kNothing ? make_whole(path, write_into) : write_into(path);
}

RunDirectory::RunDirectory(const std::string& path, const std::string& config_text, const nlohmann::json& environment,
                           const std::function<void(const std::string&)>& tell, bool keeps_events)
    : path_(path), keeps_events_(keeps_events) {
  require_new_run_directory(path);
  if (run_dir_state(path) == RunDirState::kNothing) {
    make_whole(path, [&](const std::string& building) {
      for (const char* folder : kFolders) make_folders(fmt::format("{}/{}", building, folder));
      write_file_atomically(building + "/config.txtpb", config_text);
      write_file_atomically(building + "/environment.json", json_text(environment, 2) + "\n");
      write_file_atomically(building + "/metrics.jsonl", "");
    });
    lock_.emplace(path_, job_identity(), LockSettings{tell});
  } else {
    lock_.emplace(path_, job_identity(), LockSettings{tell});
    begin_in_prepared(config_text, environment);
  }
  if (keeps_events_) events_.emplace(path_);
  open_metrics();
}

// Until the last line is done, this is a prepared directory as before.
void RunDirectory::begin_in_prepared(const std::string& config_text, const nlohmann::json& environment) {
  require_new_run_directory(path_);  // somebody may have begun before the lock was ours
  sweep_temporary_files(path_);
  for (const char* folder : kFolders) make_folders(file(folder));
  write_file_atomically(file("environment.json"), json_text(environment, 2) + "\n");
  write_file_atomically(file("metrics.jsonl"), "");
  write("config.txtpb", config_text);
}

RunDirectory::RunDirectory(const std::string& path, const std::function<void(const std::string&)>& tell,
                           bool keeps_events)
    : path_(path), keeps_events_(keeps_events) {
  for (const char* name : {"config.txtpb", "environment.json"})
    if (!fs::is_regular_file(fs::path(path) / name))
      throw Error(ExitCode::kUsage, fmt::format("{} is not the directory of a run: there is no {} in it", path, name));
  lock_.emplace(path, job_identity(), LockSettings{tell});
}

void RunDirectory::open_metrics() { open_to_append(metrics_, file("metrics.jsonl")); }

void RunDirectory::continue_after(uint64_t step) {
  const std::string path = file("metrics.jsonl");
  for (const char* folder : kFolders) make_folders(file(folder));  // copies may have left out empty ones
  for (const auto& entry : fs::directory_iterator(file("logs")))
    if (entry.path().filename().string().rfind("flight-record-rank-", 0) == 0) fs::remove(entry.path());
  sweep_temporary_files(path_);
  sweep_temporary_files(file("weights"));
  open_metrics();
  const std::string text = read_file(path, kNoLimit);
  const size_t end = end_of_rows(text, step, path);
  if (end < text.size() && ::ftruncate(metrics_.get(), static_cast<off_t>(end)) != 0)
    fail(path, "cannot remove the rows of later steps", std::strerror(errno));
  if (keeps_events_) events_.emplace(path_, step);
}

void RunDirectory::append_metrics(const nlohmann::json& row) {
  require_not_lost();
  append(metrics_, row, file("metrics.jsonl"));
  if (!events_) return;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  events_->append(row["step"].get<uint64_t>(), std::chrono::duration<double>(now).count(), scalars_of(row));
}

void RunDirectory::append_log(const std::string& name, const nlohmann::json& row) {
  Descriptor log;
  open_to_append(log, file(name));
  append(log, row, file(name));
}

void RunDirectory::sync() {
  if (::fsync(metrics_.get()) != 0)
    fail(file("metrics.jsonl"), "cannot be flushed to the device", std::strerror(errno));
  if (events_) events_->sync();
}

void RunDirectory::require_not_lost() {
  if (!lock_->held()) lock_->check();
}

void RunDirectory::write(const std::string& name, const std::string& bytes) {
  lock_->check();
  write_file_atomically(file(name), bytes);
}

void RunDirectory::remove(const std::string& name) {
  lock_->check();
  if (::unlink(file(name).c_str()) != 0 && errno != ENOENT) fail(file(name), "cannot be removed", std::strerror(errno));
}

nlohmann::json RunDirectory::environment() const { return require_json_object(file("environment.json")); }

}  // namespace muster::run
