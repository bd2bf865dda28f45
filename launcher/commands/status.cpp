#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/print.h"
#include "base/text.h"
#include "core/run/run_status.h"
#include "launcher/commands/commands.h"
#include "launcher/slurm/job_log.h"

namespace muster::launcher {
namespace {

using run::RunState;
using run::RunStatus;

// How to continue a run that nobody works on.
std::string how_to_continue(const std::string& path, const JobHistory& jobs) {
  const std::string resume = fmt::format("to continue: muster resume {}", shell_quoted(path));
  if (jobs.queued && !jobs.reason.empty()) return fmt::format("its job is requeued ({})", jobs.reason);
  if (jobs.queued) return fmt::format("job {} is queued to continue it", jobs.job);
  return jobs.in_job ? fmt::format("its job has started; if that is gone (squeue -j {}), {}", jobs.job, resume)
                     : resume;
}

std::string state_text(const std::string& path, const RunStatus& status, const JobHistory& jobs) {
  switch (status.state) {
    case RunState::kPrepared:
      if (jobs.job.empty()) return "prepared, but no job was submitted";
      if (jobs.decision == "stopped") return fmt::format("not begun: its job has ended ({})", jobs.reason);
      return jobs.in_job ? "its job has started, but has not begun the run" : "queued, not begun";
    case RunState::kRunning:
      return "running: " + status.holder;
    case RunState::kLost:
      return fmt::format("lost: {} is gone or has shown no sign of life for {}; {}", status.holder,
                         duration_text(status.silent_seconds), how_to_continue(path, jobs));
    case RunState::kStopped:
      return fmt::format("stopped{}; {}", jobs.queued || jobs.reason.empty() ? "" : fmt::format(" ({})", jobs.reason),
                         how_to_continue(path, jobs));
    default:
      return "finished";
  }
}

void print(const std::string& path, const RunStatus& status, const JobHistory& jobs) {
  const auto line = [](const char* name, const std::string& text) {
    if (!text.empty()) print_out("  {:<11} {}\n", name, text);
  };
  print_out("{}: {}\n", path, state_text(path, status, jobs));
  if (!jobs.job.empty())
    line("job", fmt::format("{}, {}: started {}, requeued {}, crashed {} times", jobs.job, jobs.job_name, jobs.started,
                            jobs.requeued, jobs.crashed));
  if (status.ranks > 0) line("ranks", fmt::format("{} on {}", status.ranks, join(status.hosts)));
  if (status.begun > 0) {
    std::string step = fmt::to_string(status.step);
    if (status.total_steps > 0) step += fmt::format(" of {}", status.total_steps);
    if (status.steps_per_epoch > 0 && status.epoch > 0)
      step += fmt::format(", epoch {} of {}", status.epoch, status.epochs());
    line("step", step);
  }
  if (status.samples_per_second) {
    std::string left;
    if (status.state == RunState::kRunning && status.seconds_left)
      left = fmt::format(", about {} left, evaluations not counted", duration_text(*status.seconds_left));
    line("speed", fmt::format("{:.1f} samples/s{}", *status.samples_per_second, left));
  }
  if (status.loss) line("loss", fmt::format("{:.4f}", *status.loss));
  if (status.best_value)
    line("best", fmt::format("{} {:.4f} on the validation split, at step {}", status.best_name, *status.best_value,
                             status.best_step));
  if (status.checkpoint_step)
    line("checkpoint", fmt::format("step {}, {} ago", *status.checkpoint_step, duration_text(status.checkpoint_age)));
  else if (status.begun > 0)
    line("checkpoint", "none yet");
  line("last output", status.last_message);
}

nlohmann::json to_json(const RunStatus& status, const JobHistory& jobs) {
  const auto given = [](const std::string& value) { return value.empty() ? nlohmann::json() : nlohmann::json(value); };
  auto json = run::to_json(status);
  json["job_name"] = given(jobs.job_name);
  json["job"] = given(jobs.job);
  json["slurm"] = {{"started", jobs.started},
                   {"requeued", jobs.requeued},
                   {"crashed", jobs.crashed},
                   {"decision", given(jobs.decision)},
                   {"reason", given(jobs.reason)}};
  return json;
}

}  // namespace

void add_status_command(CLI::App& parent) {
  struct Arguments {
    std::vector<std::string> run_directories;
    bool json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  auto* command = parent.add_subcommand(
      "status", "Show the state of runs from their run directories: on any machine, without asking the scheduler");
  command->add_option("RUN_DIR", arguments->run_directories, "Run directories")->required();
  command->add_flag("--json", arguments->json, "Print JSON: an object for one run, an array for several");
  command->callback([arguments] {
    auto all = nlohmann::json::array();
    std::vector<std::string> wrong;
    for (const auto& path : arguments->run_directories) {
      try {
        const RunStatus status = run::run_status(path);
        const JobHistory jobs = job_history(path);
        if (!arguments->json) print(path, status, jobs);
        all.push_back(to_json(status, jobs));
        all.back()["run_directory"] = path;
      } catch (const Error& error) {
        wrong.push_back(error.what());
      }
    }
    if (arguments->json && !all.empty())
      print_out("{}\n", (arguments->run_directories.size() == 1 ? all[0] : all)
                            .dump(2, ' ', true, nlohmann::json::error_handler_t::replace));
    if (!wrong.empty()) throw Error(ExitCode::kUsage, join(wrong, "\n"));
  });
}

}  // namespace muster::launcher
