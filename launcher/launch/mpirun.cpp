#include "launcher/launch/mpirun.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "core/training/environment.h"
#include "distributed/error.h"

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

volatile std::sig_atomic_t child_process = 0;

extern "C" void pass_on(int signal) {
  if (child_process > 0) kill(static_cast<pid_t>(child_process), signal);
}

extern "C" void pass_on_interrupt(int signal, siginfo_t* info, void*) {
  if (info->si_code <= 0) pass_on(signal);
}

// Runs `words` as a child and returns its exit code; 128 + signal when it was killed.
int run(const std::vector<std::string>& words) {
  std::vector<char*> arguments;
  for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const pid_t child = fork();
  if (child < 0) throw Error(ExitCode::kIo, std::string("cannot start a process: ") + std::strerror(errno));
  if (child == 0) {
    execv(arguments[0], arguments.data());
    std::fprintf(stderr, "muster: cannot run %s: %s\n", arguments[0], std::strerror(errno));
    _exit(static_cast<int>(ExitCode::kUsage));
  }
  child_process = child;
  struct sigaction action = {};
  action.sa_handler = pass_on;
  for (const int signal : {SIGTERM, SIGUSR1, SIGUSR2, SIGHUP}) sigaction(signal, &action, nullptr);
  // The terminal sends Ctrl-C to mpirun itself; an interrupt that somebody else sends to this process alone must be passed on.
  action.sa_sigaction = pass_on_interrupt;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGINT, &action, nullptr);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool root_allowed_by_environment() {
  return std::getenv("OMPI_ALLOW_RUN_AS_ROOT") && std::getenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM");
}

}  // namespace

void launch(const LaunchOptions& options) {
  static const std::vector<std::string> commands{"train", "evaluate", "predict"};
  if (options.command.empty() || std::find(commands.begin(), commands.end(), options.command[0]) == commands.end())
    throw Error(ExitCode::kUsage, "launch: " + (options.command.empty() ? std::string("what shall the ranks run?") : "\"" + options.command[0] + "\" is not for several ranks.") +
                                      " Give train, evaluate or predict with its arguments, after launch's own options: muster launch -n 2 train CONFIG");
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
  words.insert(words.end(), options.command.begin(), options.command.end());
  std::string line;
  for (const auto& word : words) line += (line.empty() ? "" : " ") + shell_quoted(word);
  if (options.dry_run) {
    std::printf("%s\n", line.c_str());
    return;
  }
  std::fprintf(stderr, "%s\n", line.c_str());
  const int code = run(words);
  if (code != 0) throw LaunchedJobFailed(code);
}

}  // namespace muster::launcher
