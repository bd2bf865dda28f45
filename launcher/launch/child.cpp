#include "launcher/launch/child.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include "distributed/error.h"

namespace muster::launcher {
namespace {

using distributed::Error;
using distributed::ExitCode;
using Clock = std::chrono::steady_clock;

volatile std::sig_atomic_t child_process = 0;
volatile std::sig_atomic_t stops_wanted = 0;  // of any kind
volatile std::sig_atomic_t orders_to_end = 0;  // SIGTERM and SIGINT alone

extern "C" void ask_to_stop(int signal) {
  const int former_errno = errno;
  const bool again = (signal == SIGTERM || signal == SIGINT) && ++orders_to_end > 1;
  ++stops_wanted;
  alarm(1);
  if (child_process > 0) kill(static_cast<pid_t>(child_process), again ? SIGTERM : SIGUSR2);
  errno = former_errno;
}

// Ranks that are still starting may have missed it; for the others once more means nothing.
extern "C" void ask_again(int) {
  const int former_errno = errno;
  if (child_process > 0 && orders_to_end < 2) kill(static_cast<pid_t>(child_process), SIGUSR2);
  alarm(1);
  errno = former_errno;
}

constexpr int kStopSignals[] = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP};

pid_t parent_of(const std::string& process) {
  std::ifstream file("/proc/" + process + "/stat");
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');  // the name may hold anything
  int parent = 0;
  char state = 0;
  if (name_end == std::string::npos || std::sscanf(text.c_str() + name_end + 1, " %c %d", &state, &parent) != 2) return 0;
  return parent;
}

void kill_children() {
  DIR* all = opendir("/proc");
  if (!all) return;
  while (const dirent* entry = readdir(all))
    if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && parent_of(entry->d_name) == getpid())
      kill(static_cast<pid_t>(std::atoi(entry->d_name)), SIGKILL);
  closedir(all);
}

// What the child started and left behind has become our own child.
void end_orphans() {
  const auto patience = Clock::now() + std::chrono::seconds(5);
  while (true) {
    const pid_t ended = waitpid(-1, nullptr, WNOHANG);
    if (ended < 0 && errno == ECHILD) return;
    if (ended > 0) continue;
    if (Clock::now() > patience) kill_children();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

[[noreturn]] void become(const std::vector<std::string>& words, const std::map<std::string, std::string>& environment, pid_t launcher) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != launcher) _exit(static_cast<int>(ExitCode::kRequeue));
  setpgid(0, 0);
  if (isatty(STDIN_FILENO)) {
    const int none = open("/dev/null", O_RDONLY);
    if (none >= 0) dup2(none, STDIN_FILENO);
  }
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 0);
  for (const int signal : kStopSignals) signal == SIGHUP ? std::signal(signal, SIG_IGN) : std::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  std::vector<char*> arguments;
  for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  execv(arguments[0], arguments.data());
  std::fprintf(stderr, "muster: cannot run %s: %s\n", arguments[0], std::strerror(errno));
  _exit(static_cast<int>(ExitCode::kUsage));
}

}  // namespace

ChildEnd run_child(const std::vector<std::string>& words, const std::map<std::string, std::string>& environment) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  child_process = 0;
  struct sigaction action = {};
  action.sa_handler = ask_to_stop;
  sigset_t stops, former;
  sigemptyset(&stops);
  for (const int signal : kStopSignals) {
    struct sigaction inherited = {};
    sigaction(signal, nullptr, &inherited);
    if (inherited.sa_handler == SIG_IGN) continue;  // nohup
    sigaction(signal, &action, nullptr);
    sigaddset(&stops, signal);
  }
  action.sa_handler = ask_again;
  sigaction(SIGALRM, &action, nullptr);
  // None may come between the fork and the moment in which its target is known.
  sigprocmask(SIG_BLOCK, &stops, &former);
  const pid_t launcher = getpid();
  const pid_t child = stops_wanted ? 0 : fork();
  if (child == 0 && getpid() != launcher) become(words, environment, launcher);
  child_process = child > 0 ? child : 0;
  sigprocmask(SIG_SETMASK, &former, nullptr);
  if (child < 0) throw Error(ExitCode::kIo, std::string("cannot start a process: ") + std::strerror(errno));
  if (child == 0) return {static_cast<int>(ExitCode::kRequeue), true};
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  alarm(0);
  child_process = 0;
  end_orphans();
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), stops_wanted > 0};
}

}  // namespace muster::launcher
