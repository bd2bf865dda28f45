#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "core/run/run_status.h"
#include "launcher/commands/commands.h"
#include "launcher/launch/job_command.h"

namespace muster::launcher {
namespace {

using run::RunState;
using run::RunStatus;

// What is to be done about a run that nobody works on.
std::string how_to_go_on(const std::string& path, const RunStatus& status) {
  const std::string resume = "muster resume " + shell_quoted(path) + " goes on";
  if (status.queued && !status.reason.empty()) return "its job is queued again (" + status.reason + ")";
  if (status.queued) return "job " + status.job + " is queued to go on with it";
  return status.in_job ? "its job has started; should that be gone (squeue -j " + status.job + "): " + resume : resume;
}

std::string state_text(const std::string& path, const RunStatus& status) {
  switch (status.state) {
    case RunState::kPrepared:
      if (status.job.empty()) return "prepared, but no job was submitted";
      if (status.decision == "stopped") return "not begun: its job has ended (" + status.reason + ")";
      return status.in_job ? "its job has started, but has not begun the run" : "queued, not begun";
    case RunState::kRunning:
      return "running: " + status.holder;
    case RunState::kLost:
      return "lost: " + status.holder + " is gone or has given no sign of life for " +
             duration_text(status.silent_seconds) + "; " + how_to_go_on(path, status);
    case RunState::kStopped:
      return "stopped" + (status.queued || status.reason.empty() ? "" : " (" + status.reason + ")") + "; " +
             how_to_go_on(path, status);
    default:
      return "finished";
  }
}

void print(const std::string& path, const RunStatus& status) {
  const auto line = [](const char* name, const std::string& text) {
    if (!text.empty()) std::printf("  %-11s %s\n", name, text.c_str());
  };
  const auto format = [](const char* shape, double value) {
    char text[64];
    std::snprintf(text, sizeof text, shape, value);
    return std::string(text);
  };
  std::printf("%s: %s\n", path.c_str(), state_text(path, status).c_str());
  if (!status.job.empty()) {
    line("job", status.job + ", " + status.job_name + ": started " + std::to_string(status.started) +
                    ", queued again " + std::to_string(status.requeued) + ", crashed " +
                    std::to_string(status.crashed) + " times");
  }
  std::string hosts;
  for (const auto& host : status.hosts) hosts += (hosts.empty() ? "" : ", ") + host;
  if (status.ranks > 0) line("ranks", std::to_string(status.ranks) + " on " + hosts);
  if (status.begun > 0) {
    std::string step = std::to_string(status.step);
    if (status.total_steps > 0) step += " of " + std::to_string(status.total_steps);
    if (status.steps_per_epoch > 0 && status.epoch > 0)
      step += ", epoch " + std::to_string(status.epoch) + " of " + std::to_string(status.epochs());
    line("step", step);
  }
  if (status.samples_per_second) {
    const bool goes_on = status.state == RunState::kRunning && status.seconds_left;
    line("speed",
         format("%.1f samples/s", *status.samples_per_second) +
             (goes_on ? ", about " + duration_text(*status.seconds_left) + " left, evaluations not counted" : ""));
  }
  if (status.loss) line("loss", format("%.4f", *status.loss));
  if (status.best_value)
    line("best", status.best_name + format(" %.4f", *status.best_value) + " on the validation split, at step " +
                     std::to_string(status.best_step));
  if (status.checkpoint_step)
    line("checkpoint",
         "step " + std::to_string(*status.checkpoint_step) + ", " + duration_text(status.checkpoint_age) + " ago");
  else if (status.begun > 0)
    line("checkpoint", "none yet");
  line("last output", status.last_message);
}

}  // namespace

void add_status_command(CLI::App& parent) {
  struct Arguments {
    std::vector<std::string> run_directories;
    bool json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  auto* command = parent.add_subcommand(
      "status", "How runs stand, from their run directories: on any machine, without asking the scheduler");
  command->add_option("RUN_DIR", arguments->run_directories, "Run directories")->required();
  command->add_flag("--json", arguments->json, "Print JSON: an object for one run, an array for several");
  command->callback([arguments] {
    auto all = nlohmann::json::array();
    std::string wrong;
    for (const auto& path : arguments->run_directories) {
      try {
        const RunStatus status = run::run_status(path);
        if (!arguments->json) print(path, status);
        all.push_back(run::to_json(status));
        all.back()["run_directory"] = path;
      } catch (const Error& error) {
        wrong += (wrong.empty() ? "" : "\n") + std::string(error.what());
      }
    }
    if (arguments->json && !all.empty())
      std::printf("%s\n", (arguments->run_directories.size() == 1 ? all[0] : all)
                              .dump(2, ' ', false, nlohmann::json::error_handler_t::replace)
                              .c_str());
    if (!wrong.empty()) throw Error(ExitCode::kUsage, wrong);
  });
}

}  // namespace muster::launcher
