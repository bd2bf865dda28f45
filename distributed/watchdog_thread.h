#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "distributed/fault_message.h"
#include "distributed/control_channel.h"

namespace muster::distributed {

// Of the process; see watchdog.h. `progress`: when there was some last.
FlightRecorder& flight_recorder();
Phase current_phase();
std::chrono::steady_clock::time_point last_progress();
double deadline_of(Phase phase);
const std::string* flight_record_folder();  // null: none is kept
void run_abort_hooks();

// Set by the watchdog when it has found a fault: this process ends within seconds, and its main thread must do nothing
// more that anyone sees.
void set_fault_found();

// The watchdog of a process. Made and ended by the backend. The thread it runs uses neither MPI nor a lock that another
// thread may hold for long, and ends the process by _exit: nothing that hangs can hang the end.
class Watchdog {
 public:
  // `gather`: a collective of the backend that returns every rank's string; all have one length. Collective.
  Watchdog(int rank, int size, const std::function<std::vector<std::string>(const std::string&)>& gather);
  // In good order: all ranks have met for the last time. What happens to others is no longer looked at.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // This rank is about to end the whole job, with a message of its own: the others shall not take its end for a death.
  // Returns when they know, after 1 s at most.
  void announce_abort(ExitCode code);

  // True when a deadline has passed. The thread that waits in a collective then says by absent() who has not come; it
  // knows exactly.
  bool asks_who_is_absent() const { return asks_.load(std::memory_order_relaxed); }
  [[noreturn]] void absent(std::vector<int> ranks_of_job);

 private:
  using Clock = std::chrono::steady_clock;
  struct Fault {
    Clock::time_point found;
    double no_progress = 0;     // seconds, when a deadline has passed
    RankStatus waiting;         // of the rank that found it
    std::vector<int> suspects;  // who did not come, as far as reported
    bool orphaned = false;      // the starter of this rank has gone
    bool own_deadline = false;  // it is this rank's that has passed
    bool reported = false;      // to rank 0
    bool counted = false;       // the ranks that did not come are known, or will not be
  };

  void loop();
  void wait_and_read(Clock::duration patience);
  void take(const ControlChannel::Event& event);
  void lose(int rank);
  Fault& open_fault();
  void check_deadline();
  void advance_fault();
  bool is_ready(const Fault& fault) const;
  void settle(const Fault& fault);
  // Rank 0, in a job that ends at its very beginning: at most 1 s for those that are still connecting. They must hear
  // why, or they take it for a death.
  void await_connections();
  void say_goodbye();
  RankStatus own_status() const;
  bool any_died() const { return std::count(died_.begin(), died_.end(), 1) > 0; }
  [[noreturn]] void leave(const std::vector<int>& missing, const std::string& text, int speaker);

  const int rank_, size_;
  int starter_process_ = -1;  // pidfd of the starter
  int wake_ = -1;
  std::vector<std::string> hosts_;
  std::vector<int> process_fds_;  // pidfds of the ranks on this machine; -1: not here, or no longer looked at
  std::vector<char> said_goodbye_, died_;
  std::vector<PeerView> views_;
  std::vector<Clock::time_point> heard_;
  std::optional<ControlChannel> lifeline_;
  std::string address_;
  std::optional<Fault> fault_;
  std::optional<Clock::time_point> aborted_;  // another rank ends the job; when we heard
  int abort_code_ = 0;
  Clock::duration suspended_{};  // time in which this process was stopped, and since the last progress
  Clock::time_point suspended_since_progress_{};

  enum class Wish { kNone, kEnd, kAbort };
  std::atomic<Wish> wish_{Wish::kNone};
  std::atomic<int> wished_code_{0};
  std::atomic<bool> asks_{false};
  std::atomic<std::vector<int>*> answer_{nullptr};
  std::thread thread_;
};

}  // namespace muster::distributed
