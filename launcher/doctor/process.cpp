#include "launcher/doctor/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/error.h"

namespace muster::launcher::doctor {
namespace {

using Clock = std::chrono::steady_clock;

volatile std::sig_atomic_t stop_wanted = 0;
extern "C" void note_stop(int) { stop_wanted = 1; }
constexpr int kStopSignals[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
constexpr size_t kKept = 64 << 10;

[[noreturn]] void become(const std::vector<std::string>& words, const std::map<std::string, std::string>& environment,
                         const std::vector<std::string>& removed, int out, int errors, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  setpgid(0, 0);  // Ctrl-C reaches it through this process only
  const int none = open("/dev/null", O_RDONLY);
  dup2(none, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(errors, STDERR_FILENO);
  for (const auto& name : removed) unsetenv(name.c_str());
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  for (const int signal : kStopSignals) std::signal(signal, SIG_DFL);
  std::vector<char*> arguments;
  for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  dprintf(STDERR_FILENO, "cannot run %s: %s\n", arguments[0], std::strerror(errno));
  _exit(127);
}

// What the child has left behind has become our own child.
void end_orphans() {
  const std::string list = "/proc/self/task/" + std::to_string(getpid()) + "/children";
  const auto patience = Clock::now() + std::chrono::seconds(3);
  while (true) {
    const pid_t ended = waitpid(-1, nullptr, WNOHANG);
    if (ended < 0 && errno == ECHILD) return;
    if (ended > 0) continue;
    if (Clock::now() > patience) {
      std::ifstream children(list);
      for (pid_t child; children >> child;) kill(child, SIGKILL);
    }
    usleep(20000);
  }
}

// What is there to read, appended to `text`. False: the other end is closed.
bool read_some(int descriptor, std::string& text) {
  char buffer[4096];
  const ssize_t got = read(descriptor, buffer, sizeof buffer);
  if (got > 0) text.append(buffer, static_cast<size_t>(got));
  return got > 0 || (got < 0 && errno == EINTR);
}

}  // namespace

void heed_stops() {
  struct sigaction action = {};
  action.sa_handler = note_stop;  // no SA_RESTART: poll() must end
  for (const int signal : kStopSignals) {
    struct sigaction inherited = {};
    sigaction(signal, nullptr, &inherited);
    if (inherited.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);  // else: nohup
  }
}

bool is_stopped() { return stop_wanted; }

ProcessEnd run_process(const std::vector<std::string>& words, double patience,
                       const std::function<void(const std::string&)>& take,
                       const std::map<std::string, std::string>& environment, const std::vector<std::string>& removed) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  int out[2], errors[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(errors, O_CLOEXEC) != 0)
    throw Error(ExitCode::kIo, std::string("cannot make a pipe: ") + std::strerror(errno));
  const pid_t parent = getpid(), child = fork();
  if (child == 0) become(words, environment, removed, out[1], errors[1], parent);
  close(out[1]);
  close(errors[1]);
  if (child < 0)
    throw Error(ExitCode::kIo,
                             std::string("cannot start a process: ") + std::strerror(errno));

  ProcessEnd end;
  std::string text;
  int status = 0;
  auto heard = Clock::now();
  Clock::time_point told;  // to end
  bool reaped = false;
  pollfd waits[2] = {{out[0], POLLIN, 0}, {errors[0], POLLIN, 0}};
  while (true) {
    poll(waits, 2, 100);
    if (waits[0].fd >= 0 && waits[0].revents && !read_some(out[0], text)) waits[0].fd = -1;
    if (waits[1].fd >= 0 && waits[1].revents && !read_some(errors[0], end.errors)) waits[1].fd = -1;
    if (end.errors.size() > kKept) end.errors.erase(0, end.errors.size() - kKept);
    for (size_t newline; (newline = text.find('\n')) != std::string::npos; text.erase(0, newline + 1)) {
      heard = Clock::now();
      take(text.substr(0, newline));
    }
    if (!reaped) reaped = waitpid(child, &status, WNOHANG) == child;
    // Whoever inherited a pipe may keep it open for ever.
    if (reaped && !(waits[0].revents & POLLIN) && !(waits[1].revents & POLLIN)) break;
    const auto now = Clock::now();
    const bool silent = std::chrono::duration<double>(now - heard).count() > patience;
    if (told == Clock::time_point() && (silent || stop_wanted)) {
      end.silent = !stop_wanted;
      told = now;
      kill(child, SIGTERM);
    } else if (told != Clock::time_point() && now - told > std::chrono::seconds(3)) {
      kill(-child, SIGKILL);
    }
  }
  close(out[0]);
  close(errors[0]);
  end_orphans();
  end.interrupted = stop_wanted;
  end.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return end;
}

Answer ask(const std::vector<std::string>& words) {
  std::string text;
  const auto end = run_process(words, 10, [&](const std::string& line) { text += line + "\n"; });
  return {end.silent ? -1 : end.code, end.errors + text};
}

std::string summarize_stderr(const std::string& errors) {
  std::string own, first;
  int lines = 0;
  std::istringstream text(errors);
  for (std::string line; std::getline(text, line);) {
    const size_t start = line.find_first_not_of(" \t\r");
    if (start == std::string::npos || line.find_first_not_of("-=* \r") == std::string::npos) continue;
    line = line.substr(start, line.find_last_not_of(" \t\r") + 1 - start);
    if (line.rfind("This usually", 0) == 0 || line.rfind("You can override", 0) == 0) break;  // general advice follows
    if (line.rfind("muster: ", 0) == 0)
      own += (own.empty() ? "" : "; ") + line.substr(8);
    else if (lines++ < 4)
      first += (first.empty() ? "" : " ") + line;
  }
  const std::string whole = own.empty() ? first : own;
  return whole.size() <= 400 ? whole : whole.substr(0, 397) + "...";
}

}  // namespace muster::launcher::doctor
