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
#include "distributed/control_channel.h"
#include "distributed/fault.h"
#include "distributed/network.h"

namespace muster::distributed {

// State of the process; see watchdog.h.
FlightRecorder& flight_recorder();
Phase current_phase();
std::chrono::steady_clock::time_point last_progress();
double deadline_of(Phase phase);            // seconds; 0: none
const std::string* flight_record_folder();  // null: no records are written
void run_abort_hooks();

// Called by the watchdog when it has found a fault: this process ends within seconds, and its main thread must do
// nothing more that has an effect outside.
void set_fault_found();

// The watchdog of a process, owned by the backend. Its thread uses neither MPI nor a lock that another thread may hold
// for long, and ends the process by _exit: nothing that hangs can delay it.
class Watchdog {
 public:
  // `gather`: a collective of the backend that returns every rank's string; all have one length. Collective.
  Watchdog(int rank, int size, const std::function<std::vector<std::string>(const std::string&)>& gather);
  // After the last collective of all ranks: what happens to other ranks is no longer watched.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // This rank is about to end the whole job, with a message of its own: the others must not report it as lost. Returns
  // when they know, after 1 s at most.
  void announce_abort(ExitCode code);

  // True when a deadline has passed. The thread that waits in a collective then reports the missing ranks by absent();
  // it knows them exactly.
  bool asks_who_is_absent() const { return asks_.load(std::memory_order_relaxed); }
  [[noreturn]] void absent(std::vector<int> ranks_of_job);

 private:
  using Clock = std::chrono::steady_clock;
  struct Fault {
    Clock::time_point found;
    double no_progress = 0;     // seconds, when a deadline has passed
    RankStatus waiting;         // of the rank that found it
    std::vector<int> suspects;  // ranks that are reported missing so far
    bool orphaned = false;      // the program that started this rank has ended
    bool own_deadline = false;  // the deadline that has passed is this rank's
    bool reported = false;      // to rank 0
    bool counted = false;       // the missing ranks are known, or will not become known
  };

  void loop();
  void wait_and_read(Clock::duration patience);
  void take(const ControlChannel::Event& event);
  void lose(int rank);
  Fault& open_fault();
  void check_deadline();
  void advance_fault();
  bool is_ready(const Fault& fault) const;
  std::vector<int> unheard_suspects(const Fault& fault) const;
  [[noreturn]] void conclude(const Fault& fault);
  // Rank 0, in a job that ends at its very beginning: waits at most 1 s for ranks that are still connecting. They must
  // be told the reason, or they would report a lost rank.
  void await_connections();
  void say_goodbye();
  RankStatus own_status() const;
  bool any_died() const { return std::count(died_.begin(), died_.end(), 1) > 0; }
  [[noreturn]] void leave(const std::vector<int>& missing, const std::string& text, int reporter);

  const int rank_, size_;
  int starter_process_ = -1;  // pidfd of the starter
  int wake_ = -1;
  std::vector<int> process_fds_;  // pidfds of the ranks on this machine; -1: not here, or no longer watched
  std::vector<char> said_goodbye_, died_;
  std::vector<PeerView> views_;
  std::vector<Clock::time_point> heard_;
  std::optional<ControlChannel> channel_;
  std::string address_;
  std::optional<Fault> fault_;
  std::optional<Clock::time_point> aborted_;  // when another rank announced that it ends the job
  int abort_code_ = 0;
  Clock::duration suspended_{};  // time since the last progress in which this process was stopped
  Clock::time_point suspended_since_progress_{};

  enum class Request { kNone, kEnd, kAbort };
  std::atomic<Request> request_{Request::kNone};
  std::atomic<int> requested_code_{0};
  std::atomic<bool> asks_{false};
  std::atomic<std::vector<int>*> answer_{nullptr};
  std::thread thread_;
};

}  // namespace muster::distributed
