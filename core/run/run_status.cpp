#include "core/run/run_status.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/input_file.h"
#include "base/json.h"
#include "checkpoints/checkpoint.h"
#include "core/config/stored.h"
#include "core/metrics/metrics.h"
#include "core/run/run_directory.h"

namespace muster::run {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr uint64_t kTail = 1 << 18;   // bytes: hundreds of rows
constexpr size_t kRowsForSpeed = 20;  // single steps vary

// The end of a file that may be long, from the start of a line; "" when it cannot be read.
std::string tail(const std::string& path) try {
  InputFile file(path);
  const uint64_t begin = file.size() - std::min(file.size(), kTail);
  std::string text(file.size() - begin, '\0');
  file.read(begin, text.data(), text.size());
  if (begin > 0) text.erase(0, text.find('\n') + 1);
  return text;
} catch (const Error&) {
  return "";
}

uint64_t count(const json& object, const char* name) {
  return static_cast<uint64_t>(std::max(0.0, number_in(object, name).value_or(0)));
}

double seconds_since(const timespec& time) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return std::max(
      0.0, static_cast<double>(now.tv_sec - time.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec - time.tv_nsec));
}

void read_holder(const std::string& folder, RunStatus& status) {
  std::optional<LockHolder> holder;
  try {
    holder = read_lock(folder + "/lock");
  } catch (const Error&) {
    // Being replaced, or not readable for this user.
  }
  if (!holder) return;
  status.holder = holder->name();
  status.silent_seconds = seconds_since(holder->renewed);
  const bool renewed = status.silent_seconds < 5 * std::chrono::duration<double>(holder->interval).count();
  status.state = is_running(holder->where).value_or(renewed) ? RunState::kRunning : RunState::kLost;
}

void read_start(const json& environment, RunStatus& status) {
  const json* last = &environment;
  status.begun = environment.empty() ? 0 : 1;
  const json resumes = member_of(environment, "resumes");
  if (resumes.is_array() && !resumes.empty()) {
    status.begun += static_cast<int64_t>(resumes.size());
    last = &resumes.back();
  }
  status.ranks = static_cast<int64_t>(count(*last, "world_size"));
  std::set<std::string> seen;
  if (const json ranks = member_of(*last, "ranks"); ranks.is_array())
    for (const auto& rank : ranks)
      if (const auto host = text_in(rank, "host"); seen.insert(host).second) status.hosts.push_back(host);
  const json steps = member_of(*last, "steps");
  status.total_steps = count(steps, "total");
  status.steps_per_epoch = count(steps, "per_epoch");
}

void read_metrics(const std::string& folder, const std::string& select_by, double batch_size, RunStatus& status) {
  const auto rows = json_rows(tail(folder + "/metrics.jsonl"));
  std::vector<double> speeds;
  std::vector<std::string> names;
  if (!select_by.empty()) names.push_back(select_by);
  if (names.empty())
    for (const auto task : {data::Task::kClassification, data::Task::kRegression, data::Task::kMultilabel})
      names.push_back(metrics::default_metric(task));
  for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
    status.step = std::max(status.step, count(*row, "step"));
    status.epoch = std::max(status.epoch, static_cast<int64_t>(count(*row, "epoch")));
    const std::string kind = text_in(*row, "kind");
    if (kind == "train") {
      if (!status.loss) status.loss = number_in(*row, "loss");
      if (const auto speed = number_in(*row, "samples_per_second");
          speed && *speed > 0 && speeds.size() < kRowsForSpeed)
        speeds.push_back(*speed);
    }
    if (kind != "valid" || !status.best_name.empty() || member_of(*row, "best") != true) continue;
    const json metrics = row->value("metrics", *row);
    for (const auto& name : names) {
      status.best_value = number_in(name == "loss" ? *row : metrics, name.c_str());
      if (!status.best_value) continue;
      status.best_name = name;
      status.best_step = count(*row, "step");
      break;
    }
  }
  if (speeds.empty()) return;
  std::nth_element(speeds.begin(), speeds.begin() + static_cast<int64_t>(speeds.size() / 2), speeds.end());
  status.samples_per_second = speeds[speeds.size() / 2];
  if (status.total_steps > 0 && batch_size > 0)
    status.seconds_left = static_cast<double>(status.total_steps - std::min(status.step, status.total_steps)) *
                          batch_size / *status.samples_per_second;
}

std::string last_line(const std::string& path) {
  std::string all = tail(path);
  all.erase(all.find_last_not_of("\n\r ") + 1);
  all.erase(0, all.find_last_of("\r\n") + 1);
  std::string shown;
  for (const char c : all.substr(0, 300)) shown += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  return shown;
}

std::string last_message(const std::string& folder) {
  std::error_code error;
  fs::path newest;
  fs::file_time_type time = fs::file_time_type::min();
  for (auto entry = fs::directory_iterator(folder + "/logs", error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const auto ending = entry->path().extension();
    std::error_code gone;
    const auto written = fs::last_write_time(entry->path(), gone);
    if (gone || (ending != ".out" && ending != ".err" && ending != ".log" && ending != ".txt") || written < time ||
        fs::file_size(entry->path(), gone) == 0 || gone)
      continue;
    time = written;
    newest = entry->path();
  }
  return newest.empty() ? "" : last_line(newest.string());
}

}  // namespace

RunStatus run_status(const std::string& run_directory) {
  const RunDirState place = run_dir_state(run_directory);
  if (std::error_code error;
      !fs::exists(run_directory + "/config.txtpb", error) && error == std::errc::permission_denied)
    throw Error(ExitCode::kUsage, fmt::format("{}: cannot be read: {}", run_directory, error.message()));
  if (place == RunDirState::kNothing)
    throw Error(ExitCode::kUsage, fmt::format("{}: there is nothing of that name", run_directory));
  if (place == RunDirState::kOther)
    throw Error(ExitCode::kUsage,
                fmt::format("{}: is not the directory of a run: there is no config.txtpb in it", run_directory));
  RunStatus status;
  status.state = place == RunDirState::kPrepared   ? RunState::kPrepared
                 : place == RunDirState::kFinished ? RunState::kFinished
                                                   : RunState::kStopped;
  status.last_message = last_message(run_directory);
  if (place == RunDirState::kPrepared) return status;
  if (place != RunDirState::kFinished) read_holder(run_directory, status);
  read_start(read_json_object(run_directory + "/environment.json"), status);
  std::string select_by;
  double batch_size = 0;
  try {
    const auto experiment = config::load_stored_experiment(run_directory + "/config.txtpb").experiment;
    select_by = experiment.evaluation().select_by();
    batch_size = experiment.training().batch_size();
  } catch (const Error&) {
    // Written by another version of muster: the rest is known without it.
  }
  read_metrics(run_directory, select_by, batch_size, status);
  if (place == RunDirState::kFinished) status.seconds_left.reset();
  const auto found = checkpoints::find_checkpoints(run_directory + "/checkpoints");
  struct stat file {};
  if (found.empty() || ::stat((found.front().path + "/MANIFEST.pb").c_str(), &file) != 0) return status;
  status.checkpoint_step = found.front().step;
  status.checkpoint_age = seconds_since(file.st_mtim);
  status.step = std::max(status.step, found.front().step);
  return status;
}

std::string name_of(RunState state) {
  static constexpr const char* kNames[] = {"prepared", "running", "lost", "stopped", "finished"};
  return kNames[static_cast<size_t>(state)];
}

json to_json(const RunStatus& status) {
  const auto known = [](const auto& value) { return value ? json(*value) : json(); };
  const auto positive = [](auto value) { return value > 0 ? json(value) : json(); };
  const auto given = [](const std::string& value) { return value.empty() ? json() : json(value); };
  return {
      {"state", name_of(status.state)},
      {"step", status.step},
      {"total_steps", positive(status.total_steps)},
      {"epoch", status.epoch},
      {"epochs", status.steps_per_epoch > 0 ? json(status.epochs()) : json()},
      {"samples_per_second", known(status.samples_per_second)},
      {"seconds_left", known(status.seconds_left)},
      {"loss", known(status.loss)},
      {"best", status.best_name.empty()
                   ? json()
                   : json{{"name", status.best_name}, {"value", known(status.best_value)}, {"step", status.best_step}}},
      {"checkpoint", status.checkpoint_step
                         ? json{{"step", *status.checkpoint_step}, {"age_seconds", status.checkpoint_age}}
                         : json()},
      {"holder", given(status.holder)},
      {"silent_seconds", status.holder.empty() ? json() : json(status.silent_seconds)},
      {"hosts", status.hosts},
      {"ranks", positive(status.ranks)},
      {"jobs_begun", status.begun},
      {"last_message", given(status.last_message)}};
}

}  // namespace muster::run
