#pragma once

#include <sys/types.h>

#include <csignal>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"

namespace muster {

// The signals by which terminals and schedulers ask a whole process group to stop: SIGINT, SIGTERM, SIGUSR1, SIGUSR2.
const std::vector<int>& stop_signals();

// From here on `signals` are counted instead of ending this process; those that it ignores (nohup) stay ignored.
void catch_stops(const std::vector<int>& signals);
// How many signals have been caught.
int caught_stops();

// Call it first in main(), before anything is opened. A process may be started with its standard input, output or error
// closed; the next file that it opened would get that number, and messages would be written into it. This puts
// /dev/null there: reading finds the end, messages are dropped, and what is written to standard output fails, as it
// did.
void open_missing_standard_streams();

// This thread, and threads that it starts, get no signals while this lives; those started keep it so.
class SignalsBlocked {
 public:
  SignalsBlocked();
  ~SignalsBlocked();
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t former_;
};

// How a child differs from this process. Signals have their default action in it, except that an ignored SIGHUP (nohup)
// stays ignored.
struct ChildOptions {
  std::map<std::string, std::string> environment;  // variables to set
  std::vector<std::string> removed;                // variables to unset
  std::vector<int> blocked;                        // signals that never reach it, not even while the program starts
  std::vector<int> ignored;                        // signals that it starts with ignoring
  bool own_group = false;                          // Ctrl-C in the terminal does not reach it
  int death_signal = 0;                            // what it gets when the thread that started it ends
  bool inherits_descriptors = false;  // those above 2 that are not close-on-exec; otherwise they are closed
  int streams[3] = {0, 1, 2};         // the descriptors that become its standard input, output and error
};

// A running program. For one thread at a time.
class Child {
 public:
  // Starts arguments[0], from the PATH if it has no slash. A program that cannot be run is not an error here: see
  // start_error(). Throws Error(kIo) when the system has no room for a process.
  Child(const std::vector<std::string>& arguments, const ChildOptions& options);
  ~Child();  // kills it if it is still running

  pid_t id() const { return id_; }
  // errno of the failed exec; 0: the program was started.
  int start_error() const { return start_error_; }
  // 128 + signal if it was killed, 127 if it could not be started; nullopt while it runs.
  std::optional<int> exit_code();
  // Waits at most this long for its end.
  std::optional<int> wait(double seconds);
  // With own_group the whole group gets it if `to_group`.
  void signal(int number, bool to_group = false);
  // Readable once it has ended; -1 on kernels without pidfd.
  int descriptor() const { return descriptor_.get(); }

 private:
  pid_t id_ = -1;
  Descriptor descriptor_;
  int start_error_ = 0;
  bool own_group_;
  std::optional<int> code_;
};

enum class Stream { kOutput = 1, kError = 2 };

struct ProcessOptions : ChildOptions {
  // kNone: /dev/null, so that it does not take what a caller's `while read` loop is to read; kBytes: `input_bytes`;
  // kInherited: this process's, unless the child has its own group and that is a terminal, which background processes
  // cannot read.
  enum class Input { kNone, kBytes, kInherited };
  Input input = Input::kNone;
  std::string input_bytes;

  // Captured unless `on_bytes` is set, which gets both streams as they come, or `on_line`, which gets the lines of
  // standard output (without their ends).
  std::function<void(Stream, const std::string&)> on_bytes;
  std::function<void(const std::string&)> on_line;
  size_t capture_limit = 16 << 20;  // bytes kept of each stream: the last ones
  std::function<void()> on_idle;    // called about 20 times per second

  // 0: none. A program that has not ended after time_limit seconds, or has written no line to standard output for
  // silence_limit seconds, gets SIGTERM, and SIGKILL (its whole group) after `grace` seconds.
  double time_limit = 0, silence_limit = 0, grace = 3;
  // The same for a program that after start_limit seconds has not begun its work, which has_started() tells.
  double start_limit = 0;
  std::function<bool()> has_started;

  // What a stop signal to this process means while the program runs. kEnd: as the end of time_limit (for signals that
  // catch_stops() was called for).
  //
  // kForward: SIGTERM, SIGINT, SIGUSR1, SIGUSR2 or SIGHUP asks the child by SIGUSR2 to save and stop, once per second
  // until it ends. (mpirun hands SIGUSR2 to all ranks; from SIGTERM it kills them two seconds later.) A second SIGTERM
  // or SIGINT ends the child by SIGTERM. If a stop was caught earlier, the program is not started.
  enum class OnStop { kNothing, kEnd, kForward };
  OnStop on_stop = OnStop::kNothing;
  // With kForward: only SIGINT, several times within a second, ends the child (srun, which passes SIGTERM on to its
  // tasks and keeps waiting for them).
  bool ends_by_interrupts = false;

  // Returns only after all that the program started has ended too; what still runs `grace` seconds after it is killed.
  // Makes this process a subreaper and reaps all its children: not beside other children.
  bool ends_orphans = false;
};

struct ProcessResult {
  int code = 0;                            // exit code; 128 + signal if it was killed; 127 if it could not be started
  int start_error = 0;                     // errno of the failed exec; 0: the program was started
  bool timed_out = false, silent = false;  // it was ended because of time_limit, silence_limit
  bool not_started = false;                // ... of start_limit
  bool stopped = false;                    // this process was asked to stop (OnStop)
  std::string output, errors;              // what was captured

  // For messages: standard output without blanks around it; also standard error if it failed; "there is no X on the
  // PATH" if there was none.
  std::string answer() const;
  std::string program;  // arguments[0]
};

// Runs a program to its end. Throws Error(kIo) when the system has no room for a process.
ProcessResult run_process(const std::vector<std::string>& arguments, const ProcessOptions& options = {});

// A program to talk to line by line, through a socket that is its standard input and output. For one thread at a time.
class InteractiveProcess {
 public:
  // See Child. options.streams[2] is used; the other two are not.
  InteractiveProcess(const std::vector<std::string>& arguments, ChildOptions options);
  ~InteractiveProcess();  // as end(1)

  int start_error() const { return child_->start_error(); }
  // Sends a line and returns the next one that it writes, both without their ends. nullopt: it has ended, or has not
  // answered for so long.
  std::optional<std::string> exchange(const std::string& line, double seconds);
  // Ends its input, waits this long for its end, then kills it.
  void end(double seconds);

 private:
  Descriptor socket_;
  std::optional<Child> child_;
  std::string unread_;
};

}  // namespace muster
