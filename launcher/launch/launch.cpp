#include "launcher/launch/launch.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "base/text.h"
#include "core/run/environment.h"
#include "launcher/launch/backend_errors.h"
#include "launcher/launch/child.h"
#include "launcher/launch/restarts.h"
#include "launcher/launch/run_logs.h"
#include "launcher/launch/session_folder.h"

namespace muster::launcher {
namespace {

using SystemClock = std::chrono::system_clock;

// Empty where there is none, or where the ranks will say why it cannot be told. A study is nothing but its runs.
std::string directory_for_logs(const std::vector<std::string>& command) {
  if (!can_go_on(command) || command[0] == "study" || std::count(command.begin(), command.end(), "--dry-run"))
    return "";
  try {
    return directory_of(command);
  } catch (const Error&) {
    return "";
  }
}

std::string header_of(const JobCommand& job) { return "==== " + utc_now() + " " + shell_line(job); }

std::string end_text(const JobCommand& job, int code, SystemClock::time_point begin) {
  return std::to_string(job.ranks) + (job.ranks == 1 ? " rank on " : " ranks on ") + std::to_string(job.hosts) +
         (job.hosts == 1 ? " host" : " hosts") + " ended with exit code " + std::to_string(code) + " after " +
         duration_text(std::chrono::duration<double>(SystemClock::now() - begin).count());
}

void check(const LaunchOptions& options) {
  const auto& command = options.job.command;
  if (command.empty() || !(can_go_on(command) || command[0] == "evaluate" || command[0] == "predict"))
    throw Error(ExitCode::kUsage, "launch: " +
                                      (command.empty() ? std::string("what shall the ranks run?")
                                                       : "\"" + command[0] + "\" is not for several ranks.") +
                                      " Give train, resume, evaluate, predict, search run or study with its arguments, "
                                      "after launch's own options: muster launch -n 2 train CONFIG");
  if (options.max_restarts > 0 && !can_go_on(command))
    throw Error(ExitCode::kUsage, "launch: --max-restarts is for train, resume, search run and study: " + command[0] +
                                      " has nothing to go on with");
}

// Exit code of a starter as it is, and what it said of why it could not start the ranks.
struct StartEnd {
  ChildEnd child;
  std::string trouble;
  bool host_lost = false;
  bool has_run = false;  // the run directory was taken
};

StartEnd start(const JobCommand& job, const LaunchEnvironment& here, const std::string& run_directory, bool has_run) {
  RankOutput output(job, RunLogs(run_directory, header_of(job), has_run));
  StartEnd end;
  {
    ChildSettings settings{job.environment, job.removed, &output, job.starter == LaunchBackend::kSrun};
    const auto folder = session_folder_for(job, here, settings.environment);
    end.child = run_child(job.words, settings);
  }
  output.finish();
  if (!output.ranks_have_spoken()) end.trouble = starter_trouble(output.starter_says(), job);
  end.host_lost = has_lost_a_host(output.starter_says());
  end.has_run = output.logs().are_begun();
  return end;
}

}  // namespace

void launch(const LaunchOptions& options) {
  check(options);
  const auto begin = SystemClock::now();
  // A time limit counts from here, whatever is started again.
  if (options.max_restarts > 0)
    setenv(kLaunchStarted, std::to_string(std::chrono::duration<double>(begin.time_since_epoch()).count()).c_str(), 1);
  const LaunchEnvironment here = detect_launch_environment();
  JobRequest request = options.job;
  JobCommand job = job_command(request, here);
  if (options.dry_run) {
    std::printf("%s\n", shell_line(job).c_str());
    return;
  }
  const std::string run_directory = directory_for_logs(request.command);
  int64_t at_last_failure = 0;
  bool has_run = false;
  for (int restarts = 0;; ++restarts) {
    std::fprintf(stderr, "%s\n", shell_line(job).c_str());
    const StartEnd end = start(job, here, run_directory, has_run);
    has_run = end.has_run;
    if (end.child.code == 0) {
      std::fprintf(stderr, "muster: %s\n", end_text(job, 0, begin).c_str());
      return;
    }
    if (!end.trouble.empty() && !end.child.told_to_stop)
      throw LaunchedJobFailed(static_cast<int>(ExitCode::kUsage), end.trouble);
    // A process that the stop reached before it could know what it means has not begun anything.
    const int stopped = end.child.code == 128 + SIGUSR2 ? static_cast<int>(ExitCode::kRequeue) : end.child.code;
    const int failed = end.host_lost ? static_cast<int>(ExitCode::kPeerFailed) : code_of_job(end.child.code);
    const int code = end.child.told_to_stop ? stopped : failed;
    if (restarts == options.max_restarts || end.child.told_to_stop || !is_worth_a_restart(code))
      throw LaunchedJobFailed(code, end_text(job, code, begin));
    const Advance advance = advance_of(options.job.command);
    if (restarts > 0 && advance.amount <= at_last_failure)
      throw LaunchedJobFailed(code, end_text(job, code, begin) + "; no progress between two failures (" + advance.text +
                                        "), so it is not started again");
    at_last_failure = advance.amount;
    std::fprintf(stderr, "muster: restart %d of %d: exit code %d, %s\n", restarts + 1, options.max_restarts, code,
                 advance.text.c_str());
    request.command = continued(options.job.command);
    job = job_command(request, here);
  }
}

}  // namespace muster::launcher
