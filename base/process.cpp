#include "base/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include "base/error.h"
#include "base/host.h"
#include "base/text.h"

extern char** environ;

namespace muster {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kPollMilliseconds = 50;
constexpr auto kBetweenRequests = std::chrono::seconds(1);
constexpr auto kBetweenInterrupts = std::chrono::milliseconds(250);

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

Error failure(const std::string& what) {
  return Error(ExitCode::kIo, fmt::format("{}: {}.", what, std::strerror(errno)));
}

// ---- Stop signals ----

volatile std::sig_atomic_t stops = 0;            // of any kind
volatile std::sig_atomic_t ends = 0;             // SIGTERM and SIGINT alone
volatile std::sig_atomic_t forward_to = 0;       // a process
volatile std::sig_atomic_t last_word = SIGTERM;  // what it gets for the second of `ends`

// Forwards at once, since the process may be waiting to write output that nobody reads.
extern "C" void count_stop(int signal) {
  const int former_errno = errno;
  ++stops;
  if (signal == SIGTERM || signal == SIGINT) ++ends;
  if (forward_to > 0) kill(static_cast<pid_t>(forward_to), ends > 1 ? static_cast<int>(last_word) : SIGUSR2);
  errno = former_errno;
}

// ---- Starting ----

struct Start {
  std::vector<char*> arguments, environment;
  const ChildOptions& options;
  sigset_t mask;
  pid_t parent;
  volatile int error;
};

// The child's part, in the parent's memory (vfork): async-signal-safe calls only; nothing is written but start.error.
[[noreturn]] void become(Start& start) {
  const auto& options = start.options;
  if (options.death_signal) prctl(PR_SET_PDEATHSIG, options.death_signal);
  if (getppid() != start.parent) _exit(127);
  if (options.own_group) setpgid(0, 0);
  struct sigaction action = {};
  for (int signal = 1; signal < NSIG; ++signal) {
    if (signal == SIGHUP && sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
  }
  action.sa_handler = SIG_IGN;
  for (const int signal : options.ignored) sigaction(signal, &action, nullptr);
  int from[3];
  for (int i = 0; i < 3; ++i) from[i] = options.streams[i] == i ? i : fcntl(options.streams[i], F_DUPFD_CLOEXEC, 3);
  for (int i = 0; i < 3; ++i)
    if (from[i] != i) dup2(from[i], i);
  if (!options.inherits_descriptors) closefrom(3);
  sigprocmask(SIG_SETMASK, &start.mask, nullptr);
  execvpe(start.arguments[0], start.arguments.data(), start.environment.data());
  start.error = errno;
  _exit(127);
}

// vfork neither copies page tables nor disturbs memory that network cards have pinned, and leaves `error` for us.
[[gnu::noinline]] pid_t start_child(Start& start) {
  const pid_t child = vfork();
  if (child == 0) become(start);
  return child;
}

std::vector<std::string> changed_environment(const ChildOptions& options) {
  std::vector<std::string> entries;
  for (char** entry = environ; *entry; ++entry) {
    const std::string name(*entry, std::strcspn(*entry, "="));
    if (!options.environment.count(name) &&
        std::find(options.removed.begin(), options.removed.end(), name) == options.removed.end())
      entries.emplace_back(*entry);
  }
  for (const auto& [name, value] : options.environment) entries.push_back(name + "=" + value);
  return entries;
}

// ---- Orphans ----

void kill_children() {
  for (const auto& name : list_folder("/proc"))
    if (const auto process = parse_integer(name))
      if (const auto status = process_status(*process); status && status->parent == getpid())
        kill(static_cast<pid_t>(*process), SIGKILL);
}

// ---- Streams ----

// One of the child's streams, on its way to us.
class Pipe {
 public:
  Pipe() {
    int both[2];
    if (pipe2(both, O_CLOEXEC) != 0) throw failure("Cannot make a pipe");
    ours_.reset(both[0]);
    childs_.reset(both[1]);
    fcntl(both[0], F_SETFL, O_NONBLOCK);
  }
  int ours() const { return ours_.get(); }
  int childs() const { return childs_.get(); }
  void close_childs() { childs_.reset(); }
  // What is there, a piece at a time; empty: nothing now, or never again.
  std::string take() {
    char bytes[65536];
    while (ours_.get() >= 0) {
      const ssize_t count = read(ours_.get(), bytes, sizeof bytes);
      if (count > 0) return std::string(bytes, static_cast<size_t>(count));
      if (count < 0 && errno == EAGAIN) return "";
      if (count == 0 || errno != EINTR) ours_.reset();
    }
    return "";
  }

 private:
  Descriptor ours_, childs_;
};

void fill(Descriptor& file, const std::string& bytes) {
  file.reset(memfd_create("input", MFD_CLOEXEC));
  if (file.get() >= 0) errno = try_write_all(file.get(), bytes);
  if (file.get() < 0 || errno != 0) throw failure("Cannot hold a program's input");
  lseek(file.get(), 0, SEEK_SET);
}

// Runs one program: what run_process() does.
class Run {
 public:
  Run(const std::vector<std::string>& arguments, const ProcessOptions& options)
      : arguments_(arguments), options_(options) {}

  ProcessResult run() {
    result_.program = arguments_.at(0);
    if (options_.ends_orphans) prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (forwards()) catch_stops({SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP});
    if (forwards() && stops > 0) {
      result_.code = 128 + SIGUSR2;
      result_.stopped = true;
      return std::move(result_);
    }
    start();
    begin_ = last_line_ = last_forward_ = Clock::now();
    while (!pass_on(kPollMilliseconds)) {
      check_limits();
      if (forwards()) forward_again();
    }
    forward_to = 0;
    if (options_.ends_orphans) end_orphans();
    while (take_output()) {
    }
    if (!line_.empty()) options_.on_line(line_);
    result_.code = *child_->exit_code();
    result_.start_error = child_->start_error();
    result_.stopped = options_.on_stop != ProcessOptions::OnStop::kNothing && stops > 0;
    return std::move(result_);
  }

 private:
  bool forwards() const { return options_.on_stop == ProcessOptions::OnStop::kForward; }

  void start() {
    ChildOptions child = options_;
    using Input = ProcessOptions::Input;
    Descriptor input;
    if (options_.input == Input::kBytes) fill(input, options_.input_bytes);
    if (options_.input == Input::kNone || (options_.input == Input::kInherited && child.own_group && isatty(0)))
      input.reset(open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (input.get() >= 0) child.streams[0] = input.get();
    child.streams[1] = out_.childs();
    child.streams[2] = errors_.childs();
    const SignalsBlocked none_before_the_target_is_known;
    child_.emplace(arguments_, child);
    out_.close_childs();
    errors_.close_childs();
    last_word = options_.ends_by_interrupts ? SIGINT : SIGTERM;
    if (forwards()) forward_to = child_->id();
  }

  // Hands on what the child writes, for which it waits at most so long. True: it has ended, and nothing is left to
  // read. (Whoever has inherited a pipe may keep it open forever.)
  bool pass_on(int milliseconds) {
    pollfd polled[3] = {{out_.ours(), POLLIN, 0}, {errors_.ours(), POLLIN, 0}, {child_->descriptor(), POLLIN, 0}};
    poll(polled, 3, milliseconds);  // ends that are closed (-1) are passed over
    const bool ended = child_->exit_code().has_value();
    const bool taken = take_output();
    if (options_.on_idle) options_.on_idle();
    return ended && !taken;
  }

  bool take_output() {
    const std::string output = out_.take(), errors = errors_.take();
    if (!output.empty()) take(Stream::kOutput, output);
    if (!errors.empty()) take(Stream::kError, errors);
    return !output.empty() || !errors.empty();
  }

  void take(Stream stream, const std::string& bytes) {
    if (stream == Stream::kOutput && bytes.find('\n') != std::string::npos) last_line_ = Clock::now();
    if (options_.on_bytes) return options_.on_bytes(stream, bytes);
    if (stream == Stream::kOutput && options_.on_line) {
      line_ += bytes;
      size_t begin = 0;
      for (size_t end; (end = line_.find('\n', begin)) != std::string::npos; begin = end + 1)
        options_.on_line(line_.substr(begin, end - begin));
      line_.erase(0, begin);
      return;
    }
    std::string& kept = stream == Stream::kOutput ? result_.output : result_.errors;
    kept += bytes;
    if (kept.size() > options_.capture_limit) kept.erase(0, kept.size() - options_.capture_limit);
  }

  void check_limits() {
    if (ending_) {
      if (seconds_since(*ending_) > options_.grace) child_->signal(SIGKILL, true);
      return;
    }
    const bool stop = options_.on_stop == ProcessOptions::OnStop::kEnd && stops > 0;
    result_.timed_out = !stop && options_.time_limit > 0 && seconds_since(begin_) > options_.time_limit;
    result_.silent = !stop && options_.silence_limit > 0 && seconds_since(last_line_) > options_.silence_limit;
    has_started_ = has_started_ || options_.start_limit <= 0 || options_.has_started();
    result_.not_started = !stop && !has_started_ && seconds_since(begin_) > options_.start_limit;
    if (!stop && !result_.timed_out && !result_.silent && !result_.not_started) return;
    ending_ = Clock::now();
    child_->signal(SIGTERM);
  }

  // Processes that were still starting may have missed the request; for others it changes nothing.
  void forward_again() {
    const bool interrupts = ends > 1 && options_.ends_by_interrupts;
    if (stops == 0 || (ends > 1 && !interrupts)) return;
    if (Clock::now() - last_forward_ < (interrupts ? Clock::duration(kBetweenInterrupts) : kBetweenRequests)) return;
    last_forward_ = Clock::now();
    child_->signal(interrupts ? SIGINT : SIGUSR2);
  }

  // What the child started and left behind has become our own child.
  void end_orphans() {
    const auto begin = Clock::now();
    while (true) {
      const pid_t ended = waitpid(-1, nullptr, WNOHANG);
      if (ended < 0 && errno == ECHILD) return;
      if (ended > 0) continue;
      if (seconds_since(begin) > options_.grace) kill_children();
      pollfd polled[2] = {{out_.ours(), POLLIN, 0}, {errors_.ours(), POLLIN, 0}};
      poll(polled, 2, 20);
      take_output();
      if (options_.on_idle) options_.on_idle();
    }
  }

  const std::vector<std::string>& arguments_;
  const ProcessOptions& options_;
  Pipe out_, errors_;
  std::optional<Child> child_;
  ProcessResult result_;
  std::string line_;  // begun, not finished
  Clock::time_point begin_, last_line_, last_forward_;
  bool has_started_ = false;
  std::optional<Clock::time_point> ending_;  // since when
};

}  // namespace

SignalsBlocked::SignalsBlocked() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &former_);
}

SignalsBlocked::~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &former_, nullptr); }

const std::vector<int>& stop_signals() {
  static const std::vector<int> signals{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
  return signals;
}

void catch_stops(const std::vector<int>& signals) {
  struct sigaction action = {};
  action.sa_handler = count_stop;  // no SA_RESTART: poll() is to end
  for (const int signal : signals) {
    struct sigaction inherited = {};
    sigaction(signal, nullptr, &inherited);
    if (inherited.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
  }
}

int caught_stops() { return stops; }

void open_missing_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) != -1 || errno != EBADF) continue;
    // The lowest free number is this one: those below are open.
    if (open("/dev/null", stream == STDERR_FILENO ? O_WRONLY : O_RDONLY) != stream) _exit(74);
  }
}

Child::Child(const std::vector<std::string>& arguments, const ChildOptions& options) : own_group_(options.own_group) {
  Start start{{}, {}, options, {}, getpid(), 0};
  const auto environment = changed_environment(options);
  for (const auto& text : arguments) start.arguments.push_back(const_cast<char*>(text.c_str()));
  for (const auto& text : environment) start.environment.push_back(const_cast<char*>(text.c_str()));
  start.arguments.push_back(nullptr);
  start.environment.push_back(nullptr);
  sigemptyset(&start.mask);
  for (const int signal : options.blocked) sigaddset(&start.mask, signal);
  {
    const SignalsBlocked no_handler_runs_in_the_child;
    id_ = start_child(start);
  }
  if (id_ < 0) throw failure("Cannot start " + arguments.at(0));
  start_error_ = start.error;
  descriptor_.reset(static_cast<int>(syscall(SYS_pidfd_open, id_, 0)));
}

Child::~Child() {
  if (exit_code()) return;
  signal(SIGKILL, true);
  wait(60);
}

std::optional<int> Child::exit_code() {
  if (code_) return code_;
  int status = 0;
  const pid_t ended = waitpid(id_, &status, WNOHANG);
  if (ended == id_) code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (ended < 0 && errno == ECHILD) code_ = 255;  // somebody else has waited for it
  return code_;
}

std::optional<int> Child::wait(double seconds) {
  const auto begin = Clock::now();
  while (!exit_code() && seconds_since(begin) < seconds) {
    pollfd polled{descriptor(), POLLIN, 0};
    poll(&polled, 1, descriptor() < 0 ? 10 : kPollMilliseconds);
  }
  return code_;
}

void Child::signal(int number, bool to_group) {
  if (!exit_code()) kill(to_group && own_group_ ? -id_ : id_, number);
}

std::string ProcessResult::answer() const {
  if (start_error == ENOENT) return fmt::format("there is no {} on the PATH", program);
  if (start_error != 0) return fmt::format("{} cannot be run: {}", program, std::strerror(start_error));
  const std::string said = trimmed(output), failed = code == 0 ? "" : trimmed(errors);
  return said + (said.empty() || failed.empty() ? "" : "\n") + failed;
}

ProcessResult run_process(const std::vector<std::string>& arguments, const ProcessOptions& options) {
  return Run(arguments, options).run();
}

InteractiveProcess::InteractiveProcess(const std::vector<std::string>& arguments, ChildOptions options) {
  int both[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both) != 0) throw failure("Cannot make a socket");
  const Descriptor childs(both[1]);
  socket_.reset(both[0]);
  options.streams[0] = options.streams[1] = both[1];
  child_.emplace(arguments, options);
}

InteractiveProcess::~InteractiveProcess() { end(1); }

void InteractiveProcess::end(double seconds) {
  socket_.reset();
  if (!child_->wait(seconds)) child_->signal(SIGKILL, true);
  child_->wait(60);
}

std::optional<std::string> InteractiveProcess::exchange(const std::string& line, double seconds) {
  const std::string sent = line + "\n";
  for (size_t done = 0; done < sent.size();) {
    const ssize_t count = send(socket_.get(), sent.data() + done, sent.size() - done, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return std::nullopt;
    done += static_cast<size_t>(count);
  }
  const auto begin = Clock::now();
  while (seconds_since(begin) < seconds) {
    if (const auto end = unread_.find('\n'); end != std::string::npos) {
      const std::string answer = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return answer;
    }
    pollfd polled{socket_.get(), POLLIN, 0};
    const double left = seconds - seconds_since(begin);
    if (poll(&polled, 1, static_cast<int>(std::clamp(left, 0.001, 1.0) * 1000)) <= 0) continue;
    char bytes[65536];
    const ssize_t count = recv(socket_.get(), bytes, sizeof bytes, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return std::nullopt;
    unread_.append(bytes, static_cast<size_t>(count));
  }
  return std::nullopt;
}

}  // namespace muster
