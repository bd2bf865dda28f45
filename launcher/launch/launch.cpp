#include "launcher/launch/launch.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/text.h"
#include "launcher/launch/rank_output.h"
#include "launcher/launch/session_folder.h"

namespace muster::launcher {
namespace {

using SystemClock = std::chrono::system_clock;

// Empty where there is none, or where the ranks will say why it cannot be known. A study is nothing but its runs.
std::string directory_for_logs(const RankCommand& command) {
  const auto& arguments = command.arguments;
  if (!command.can_continue() || command.name() == "study" ||
      std::count(arguments.begin(), arguments.end(), "--dry-run"))
    return "";
  try {
    return directory_of(command);
  } catch (const Error&) {
    return "";
  }
}

std::string end_text(const JobCommand& job, int code, SystemClock::time_point begin) {
  return fmt::format("{} on {} ended with exit code {} after {}", plural(job.ranks, "rank"), plural(job.hosts, "host"),
                     code, duration_text(std::chrono::duration<double>(SystemClock::now() - begin).count()));
}

void check(const LaunchOptions& options) {
  const auto& command = options.command;
  const auto fail = [](const std::string& message) { throw Error(ExitCode::kUsage, "launch: " + message); };
  const char* example =
      "Give train, resume, evaluate, predict, search run or study with its arguments, after launch's own options: "
      "muster launch -n 2 train CONFIG";
  if (command.arguments.empty()) fail(fmt::format("what should the ranks run? {}", example));
  if (!command.can_continue() && command.name() != "evaluate" && command.name() != "predict")
    fail(fmt::format("\"{}\" does not run on several ranks. {}", command.name(), example));
  if (options.max_restarts > 0 && !command.can_continue())
    fail(fmt::format("--max-restarts is for train, resume, search run and study: {} has nothing to continue from",
                     command.name()));
}

bool reads_standard_input(const std::vector<std::string>& arguments) {
  return std::any_of(arguments.begin(), arguments.end(), [](const std::string& text) {
    return text == "/dev/stdin" || text == "/dev/fd/0" || text == "/proc/self/fd/0";
  });
}

// How one start of the job ended.
struct StartEnd {
  ProcessResult process;
  std::string trouble;  // why the backend could not start the ranks
  bool host_lost = false;
  bool has_run = false;      // the run directory was taken
  bool has_started = false;  // the ranks were connected, or have written something
};

// Seconds for the ranks of this machine to connect, which takes one or two.
double start_limit(const LaunchEnvironment& here) {
  const auto own = here.environment.find("MUSTER_START_LIMIT");
  const auto seconds = own == here.environment.end() ? std::optional(300.0) : parse_real(own->second);
  if (!seconds || !(*seconds >= 0))
    throw Error(ExitCode::kUsage, "launch: MUSTER_START_LIMIT must be a number of seconds, 0 for no limit");
  return *seconds;
}

StartEnd start(const JobCommand& job, const LaunchEnvironment& here, const std::string& run_directory, bool has_run) {
  RankOutput output(job, RunLogs(run_directory, fmt::format("==== {} {}", utc_now(), shell_line(job)), has_run));
  StartEnd end;
  {
    ProcessOptions options;
    options.environment = job.environment;
    options.removed = job.removed;
    options.ignored = {SIGHUP};
    options.own_group = true;
    options.death_signal = SIGTERM;
    options.inherits_descriptors = true;  // an experiment may be a shell's <(command)
    if (reads_standard_input(job.arguments)) options.input = ProcessOptions::Input::kInherited;
    options.on_bytes = [&](Stream stream, const std::string& bytes) { output.take(stream, bytes); };
    options.on_idle = [&] { output.write_logs(); };
    options.on_stop = ProcessOptions::OnStop::kForward;
    options.ends_by_interrupts = job.backend == LaunchBackend::kSrun;
    options.ends_orphans = true;
    options.grace = 5;
    const auto folder = session_folder_for(job, here, options.environment);
    const std::string ready = folder ? folder->path() + "/ready" : "";
    const auto has_started = [&] { return output.ranks_have_written() || access(ready.c_str(), F_OK) == 0; };
    if (folder) {
      options.environment[kReadyFile] = ready;
      options.has_started = has_started;
      options.start_limit = start_limit(here);
    }
    end.process = run_process(job.arguments, options);
    end.has_started = !folder || has_started();
  }
  output.finish();
  if (end.process.not_started)
    throw LaunchedJobFailed(static_cast<int>(ExitCode::kIo),
                            fmt::format("MPI did not connect {} within {}. `muster doctor` looks for the reason",
                                        plural(job.ranks, "rank"), duration_text(start_limit(here))));
  if (end.process.start_error != 0)
    end.trouble = fmt::format("cannot run {}: {}", job.arguments[0], std::strerror(end.process.start_error));
  else if (!output.ranks_have_written())
    end.trouble = explain_backend_errors(output.backend_errors(), job);
  end.host_lost = has_lost_a_host(output.backend_errors());
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
  request.command = options.command.arguments;
  JobCommand job = job_command(request, here);
  if (options.dry_run) {
    std::printf("%s\n", shell_line(job).c_str());
    return;
  }
  const std::string run_directory = directory_for_logs(options.command);
  int64_t at_last_failure = 0;
  bool has_run = false;
  for (int restarts = 0;; ++restarts) {
    std::fprintf(stderr, "%s\n", shell_line(job).c_str());
    const StartEnd end = start(job, here, run_directory, has_run);
    has_run = end.has_run;
    const int backend_code = end.process.code;
    const bool stopped = end.process.stopped;
    if (backend_code == 0) {
      std::fprintf(stderr, "muster: %s\n", end_text(job, 0, begin).c_str());
      return;
    }
    if (!end.trouble.empty() && !stopped) throw LaunchedJobFailed(static_cast<int>(ExitCode::kUsage), end.trouble);
    // A process that was asked to stop before it had installed its handlers has not begun anything.
    const int stop_code = backend_code == 128 + SIGUSR2 ? static_cast<int>(ExitCode::kRequeue) : backend_code;
    const int failure = end.host_lost ? static_cast<int>(ExitCode::kPeerFailed) : job_exit_code(backend_code);
    if (stopped && !end.has_started && backend_code != static_cast<int>(ExitCode::kRequeue) &&
        backend_code != 128 + SIGUSR2)
      throw LaunchedJobFailed(128 + SIGTERM, "stopped before the ranks were connected; nothing was trained or saved");
    const int code = stopped ? stop_code : failure;
    if (restarts == options.max_restarts || stopped || !is_worth_a_restart(code))
      throw LaunchedJobFailed(code, end_text(job, code, begin));
    const JobProgress progress = progress_of(options.command);
    if (restarts > 0 && progress.amount <= at_last_failure)
      throw LaunchedJobFailed(code, fmt::format("{}; no progress between two failures ({}), so it is not started again",
                                                end_text(job, code, begin), progress.text));
    at_last_failure = progress.amount;
    std::fprintf(stderr, "muster: restart %d of %d: exit code %d, %s\n", restarts + 1, options.max_restarts, code,
                 progress.text.c_str());
    request.command = continued(options.command);
    job = job_command(request, here);
  }
}

}  // namespace muster::launcher
