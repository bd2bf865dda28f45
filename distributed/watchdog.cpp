#include "distributed/watchdog.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "distributed/watchdog_thread.h"

namespace muster::distributed {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPhases = 4;

std::atomic<Phase> phase{Phase::kSetup};
std::atomic<Clock::rep> progress{0};
std::array<std::atomic<double>, kPhases> limits{Deadlines{}.setup, Deadlines{}.step, Deadlines{}.save,
                                                Deadlines{}.evaluation};
// Strings are never freed: the watchdog may be reading the previous one.
std::atomic<const std::string*> folder{nullptr};
std::array<std::atomic<AbortHook*>, 64> hooks{};
std::atomic<bool> fault_found{false};

[[noreturn]] void wait_for_the_end() {
  while (true) ::pause();
}

}  // namespace

PhaseScope::PhaseScope(Phase entered) : previous_(phase.exchange(entered)) { report_progress(); }
PhaseScope::~PhaseScope() {
  phase = previous_;
  report_progress();
}

void report_progress() { progress.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed); }

void set_deadlines(const Deadlines& deadlines) {
  limits[0] = deadlines.setup;
  limits[1] = deadlines.step;
  limits[2] = deadlines.save;
  limits[3] = deadlines.evaluation;
}

void keep_flight_records_in(const std::string& path) { folder = new std::string(path); }

AbortHook::AbortHook(std::function<void()> action) : action_(std::move(action)) {
  for (slot_ = 0; slot_ < static_cast<int>(hooks.size()); ++slot_) {
    AbortHook* none = nullptr;
    if (hooks[slot_].compare_exchange_strong(none, this)) return;
  }
  throw Error(ExitCode::kInternal, fmt::format("more than {} abort hooks at once", hooks.size()));
}

AbortHook::~AbortHook() {
  AbortHook* own = this;
  if (!hooks[slot_].compare_exchange_strong(own, nullptr)) wait_for_the_end();
}

void run_abort_hooks() {
  for (auto& hook : hooks)
    if (AbortHook* taken = hook.exchange(reinterpret_cast<AbortHook*>(1));
        taken && taken != reinterpret_cast<AbortHook*>(1))
      taken->action_();
}

void yield_to_watchdog(ExitCode code) {
  for (int waited = 0; !fault_found.load(std::memory_order_relaxed); ++waited) {
    if (code != ExitCode::kPeerFailed || waited == 200) return;
    ::usleep(10000);
  }
  wait_for_the_end();
}

FlightRecorder& flight_recorder() {
  static FlightRecorder recorder;
  return recorder;
}

Phase current_phase() { return phase.load(std::memory_order_relaxed); }
Clock::time_point last_progress() {
  return Clock::time_point(Clock::duration(progress.load(std::memory_order_relaxed)));
}

double deadline_of(Phase of) {
  constexpr double kLongest = 1e9;  // seconds that a clock can count in nanoseconds
  const double everywhere = timeout_from_environment();
  return std::min(kLongest, everywhere > 0 ? everywhere : limits[static_cast<size_t>(of)].load());
}

const std::string* flight_record_folder() { return folder; }
void set_fault_found() { fault_found = true; }

}  // namespace muster::distributed
