#include "launcher/launch/mpirun.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "core/training/environment.h"
#include "distributed/error.h"
#include "launcher/launch/child.h"
#include "launcher/launch/restarts.h"
#include "launcher/launch/session_folder.h"

namespace muster::launcher {
namespace {

using distributed::Error;
using distributed::ExitCode;
namespace fs = std::filesystem;

std::string find_on_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');)
    if (access((folder + "/" + program).c_str(), X_OK) == 0) return folder + "/" + program;
  return "";
}

std::string shell_quoted(const std::string& word) {
  if (!word.empty() && word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%") == std::string::npos)
    return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

bool root_allowed_by_environment() {
  return std::getenv("OMPI_ALLOW_RUN_AS_ROOT") && std::getenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM");
}

std::string step_text(int64_t step) { return step < 0 ? "no checkpoint yet" : "newest checkpoint: step " + std::to_string(step); }

}  // namespace

void launch(const LaunchOptions& options) {
  static const std::vector<std::string> commands{"train", "resume", "evaluate", "predict"};
  if (options.command.empty() || std::find(commands.begin(), commands.end(), options.command[0]) == commands.end())
    throw Error(ExitCode::kUsage, "launch: " + (options.command.empty() ? std::string("what shall the ranks run?") : "\"" + options.command[0] + "\" is not for several ranks.") +
                                      " Give train, resume, evaluate or predict with its arguments, after launch's own options: muster launch -n 2 train CONFIG");
  if (options.max_restarts > 0 && options.command[0] != "train" && options.command[0] != "resume")
    throw Error(ExitCode::kUsage, "launch: --max-restarts is for train and resume: " + options.command[0] + " has nothing to go on with");
  const std::string mpirun = find_on_path("mpirun");
  if (mpirun.empty()) throw Error(ExitCode::kUsage, "launch: there is no mpirun on the PATH; install Open MPI (Debian: apt-get install openmpi-bin)");
  const int cores = training::usable_cores();
  const int ranks = options.ranks > 0 ? options.ranks : cores;
  if (ranks > cores && !options.oversubscribe)
    throw Error(ExitCode::kUsage, "launch: " + std::to_string(ranks) + " ranks on " + std::to_string(cores) + (cores == 1 ? " core" : " cores") +
                                      ": they would take turns. If that is what you want (results are the same, only slower), add --oversubscribe: muster launch -n " +
                                      std::to_string(ranks) + " --oversubscribe " + options.command[0] + " ...");
  if (geteuid() == 0 && !options.allow_run_as_root && !root_allowed_by_environment())
    throw Error(ExitCode::kUsage, "launch: you are root, and mpirun refuses to run as root because a mistake could harm the system. In a container of your own "
                                  "that is usually fine: add --allow-run-as-root (muster launch -n " +
                                      std::to_string(ranks) + " --allow-run-as-root " + options.command[0] + " ...); otherwise run as an ordinary user.");

  // Hardware threads are what this program counts as cores, so mpirun must too. No binding: mpirun's default would put every job of
  // this machine on the same first cores.
  std::vector<std::string> words{mpirun, "-n", std::to_string(ranks), "--use-hwthread-cpus", "--bind-to", "none"};
  if (options.oversubscribe) words.push_back("--oversubscribe");
  if (options.allow_run_as_root) words.push_back("--allow-run-as-root");
  words.push_back(fs::read_symlink("/proc/self/exe").string());
  const auto with = [&](const std::vector<std::string>& command) {
    auto all = words;
    all.insert(all.end(), command.begin(), command.end());
    return all;
  };
  const auto line = [&](const std::vector<std::string>& command) {
    std::string text;
    for (const auto& word : with(command)) text += (text.empty() ? "" : " ") + shell_quoted(word);
    return text;
  };
  if (options.dry_run) {
    std::printf("%s\n", line(options.command).c_str());
    return;
  }
  // A time limit counts from here, whatever is started again.
  setenv(kLaunchStarted, std::to_string(std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count()).c_str(), 1);
  auto command = options.command;
  int64_t step_at_last_failure = 0;
  for (int restarts = 0;; ++restarts) {
    std::fprintf(stderr, "%s\n", line(command).c_str());
    ChildEnd end;
    {
      const SessionFolder folder;
      end = run_child(with(command), folder.environment());
    }
    if (end.code == 0) return;
    // A process that the stop reached before it could know what it means has not begun anything.
    const int stopped = end.code == 128 + SIGUSR2 ? static_cast<int>(ExitCode::kRequeue) : end.code;
    const int code = end.told_to_stop ? stopped : code_of_job(end.code);
    if (restarts == options.max_restarts || end.told_to_stop || !is_worth_a_restart(code)) throw LaunchedJobFailed(code);
    const int64_t step = newest_step(run_directory_of(options.command));
    if (restarts > 0 && step <= step_at_last_failure)
      throw LaunchedJobFailed(code, "no progress between two failures (" + step_text(step) + "), so it is not started again");
    step_at_last_failure = step;
    std::fprintf(stderr, "muster: restart %d of %d: exit code %d, %s\n", restarts + 1, options.max_restarts, code, step_text(step).c_str());
    command = continued(options.command);
  }
}

}  // namespace muster::launcher
