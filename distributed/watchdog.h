#pragma once

#include <functional>
#include <string>

#include "base/error.h"
#include "distributed/flight_record.h"

// Every process of an MPI job of several ranks runs one watchdog thread from connect() until the ranks have met for the
// last time. It ends the process, with exit code 76 and one message per job, when another rank is lost or when nothing
// goes on: docs/faults.md. Jobs of one process and the threads backend have none; what is declared here then does
// nothing, and may be called all the same.
namespace muster::distributed {

// The process is in `phase` while this lives, with a fresh deadline. Afterwards the former phase goes on, again with a
// fresh one. Scopes nest; one thread (the one that calls collectives) makes them. Until the first, a job is in kSetup.
class PhaseScope {
 public:
  explicit PhaseScope(Phase phase);
  ~PhaseScope();
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  Phase former_;
};

// Seconds that a rank may go without progress in each phase; 0: without end. Progress is a collective that has
// completed, a change of phase, and report_progress(). Waiting for another rank is no progress: a deadline bounds how
// far ranks may be apart.
struct Deadlines {
  double setup = 3600;
  double step = 1800;
  double save = 3600;
  double evaluation = 3600;
};
// MUSTER_COLLECTIVE_TIMEOUT, where it is set, counts for all phases, whatever is given here. Takes effect at once.
void set_deadlines(const Deadlines& deadlines);
// Those in effect. Throws Error(kUsage) for a MUSTER_COLLECTIVE_TIMEOUT that is not a number of seconds above 0.
Deadlines deadlines();

// This rank is alive, though it calls no collective: for long local work, at most every few seconds. Any thread; costs
// two atomic stores.
void report_progress();

// The folder in which a failing rank <r> writes flight-record-rank-<r>.json; it must exist by then. Until this is
// called none is written.
void keep_flight_records_in(const std::string& folder);

// `action` is run by a thread of the watchdog's before it ends the process: it stops what would otherwise hold up
// others (kernels of NCCL). It must not wait for the main thread, and has 3 s. At most 64 exist at once. Where the
// action has begun, the destructor does not return.
class AbortHook {
 public:
  explicit AbortHook(std::function<void()> action);
  ~AbortHook();
  AbortHook(const AbortHook&) = delete;
  AbortHook& operator=(const AbortHook&) = delete;

 private:
  friend void run_abort_hooks();
  std::function<void()> action_;
  int slot_;
};

// To be called before this rank reports an error of its own that the other ranks do not share. Does not return when the
// watchdog is ending this process, or (for kPeerFailed, after at most 2 s) finds a lost rank: then its message is the
// better one.
void yield_to_watchdog(ExitCode code);

}  // namespace muster::distributed
