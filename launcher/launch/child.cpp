#include "launcher/launch/child.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
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

#include "base/error.h"

namespace muster::launcher {
namespace {

using Clock = std::chrono::steady_clock;

volatile std::sig_atomic_t child_process = 0;
volatile std::sig_atomic_t stops_wanted = 0;      // of any kind
volatile std::sig_atomic_t orders_to_end = 0;     // SIGTERM and SIGINT alone
volatile std::sig_atomic_t last_order = SIGTERM;  // what the child gets for the second of them

extern "C" void ask_to_stop(int signal) {
  const int former_errno = errno;
  const bool again = (signal == SIGTERM || signal == SIGINT) && ++orders_to_end > 1;
  ++stops_wanted;
  alarm(1);
  if (child_process > 0) kill(static_cast<pid_t>(child_process), again ? static_cast<int>(last_order) : SIGUSR2);
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
  if (name_end == std::string::npos || std::sscanf(text.c_str() + name_end + 1, " %c %d", &state, &parent) != 2)
    return 0;
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

// The child's standard output and error, on their way to a reader.
class Pipes {
 public:
  explicit Pipes(OutputReader* reader) : reader_(reader) {
    for (auto& pipe : pipes_)
      if (reader_ && pipe2(pipe.ends, O_CLOEXEC) != 0)
        throw Error(ExitCode::kIo, std::string("cannot make a pipe: ") + std::strerror(errno));
    for (const auto& pipe : pipes_)
      if (reader_) fcntl(pipe.ends[0], F_SETFL, O_NONBLOCK);
  }
  ~Pipes() {
    for (auto& pipe : pipes_)
      for (int& end : pipe.ends) shut(end);
  }
  Pipes(const Pipes&) = delete;
  Pipes& operator=(const Pipes&) = delete;

  void become_streams() const {
    for (const auto& pipe : pipes_)
      if (reader_) dup2(pipe.ends[1], static_cast<int>(pipe.stream));
  }
  void close_childs_ends() {
    for (auto& pipe : pipes_) shut(pipe.ends[1]);
  }
  // Hands on what is there, and waits for it at most so long.
  void pass_on(int milliseconds) {
    pollfd polled[2] = {{pipes_[0].ends[0], POLLIN, 0}, {pipes_[1].ends[0], POLLIN, 0}};
    poll(polled, 2, milliseconds);  // ends that are closed (-1) are passed over
    for (auto& pipe : pipes_) pass_on(pipe);
    if (reader_) reader_->idle();
  }

 private:
  struct Pipe {
    Stream stream;
    int ends[2] = {-1, -1};
  };
  static void shut(int& end) {
    if (end >= 0) close(end);
    end = -1;
  }
  void pass_on(Pipe& pipe) {
    char bytes[65536];
    while (pipe.ends[0] >= 0) {
      const ssize_t count = read(pipe.ends[0], bytes, sizeof bytes);
      if (count > 0)
        reader_->take(pipe.stream, std::string(bytes, static_cast<size_t>(count)));
      else if (count == 0 || (errno != EINTR && errno != EAGAIN))
        shut(pipe.ends[0]);
      else if (errno == EAGAIN)
        return;
    }
  }
  OutputReader* reader_;
  Pipe pipes_[2] = {{Stream::kOutput}, {Stream::kError}};
};

constexpr int kPatience = 50;  // milliseconds
constexpr auto kBetweenInterrupts = std::chrono::milliseconds(250);

// What the child started and left behind has become our own child.
void end_orphans(Pipes& pipes) {
  const auto patience = Clock::now() + std::chrono::seconds(5);
  while (true) {
    const pid_t ended = waitpid(-1, nullptr, WNOHANG);
    if (ended < 0 && errno == ECHILD) return;
    if (ended > 0) continue;
    if (Clock::now() > patience) kill_children();
    pipes.pass_on(20);
  }
}

[[noreturn]] void become(const std::vector<std::string>& words, const ChildSettings& settings, const Pipes& pipes,
                         pid_t launcher) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != launcher) _exit(static_cast<int>(ExitCode::kRequeue));
  setpgid(0, 0);
  if (isatty(STDIN_FILENO)) {
    const int none = open("/dev/null", O_RDONLY);
    if (none >= 0) dup2(none, STDIN_FILENO);
  }
  pipes.become_streams();
  for (const auto& name : settings.removed) unsetenv(name.c_str());
  for (const auto& [name, value] : settings.environment) setenv(name.c_str(), value.c_str(), 1);
  if (settings.output) std::signal(SIGPIPE, SIG_DFL);
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

ChildEnd run_child(const std::vector<std::string>& words, const ChildSettings& settings) {
  Pipes pipes(settings.output);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  if (settings.output) std::signal(SIGPIPE, SIG_IGN);
  child_process = 0;
  last_order = settings.ends_by_interrupts ? SIGINT : SIGTERM;
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
  if (child == 0 && getpid() != launcher) become(words, settings, pipes, launcher);
  child_process = child > 0 ? child : 0;
  sigprocmask(SIG_SETMASK, &former, nullptr);
  if (child < 0) throw Error(ExitCode::kIo, std::string("cannot start a process: ") + std::strerror(errno));
  if (child == 0) return {static_cast<int>(ExitCode::kRequeue), true};
  pipes.close_childs_ends();
  int status = 0;
  auto last_interrupt = Clock::now();
  for (pid_t ended = 0; ended == 0 || (ended < 0 && errno == EINTR);) {
    pipes.pass_on(kPatience);
    ended = waitpid(child, &status, WNOHANG);
    if (ended != 0 || !settings.ends_by_interrupts || orders_to_end < 2 ||
        Clock::now() - last_interrupt < kBetweenInterrupts)
      continue;
    kill(child, SIGINT);
    last_interrupt = Clock::now();
  }
  alarm(0);
  child_process = 0;
  end_orphans(pipes);
  pipes.pass_on(0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), stops_wanted > 0};
}

}  // namespace muster::launcher
