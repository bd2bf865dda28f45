#pragma once

#include <functional>
#include <string>

#include "base/error.h"
#include "distributed/flight_record.h"

// Every process of an MPI job of several ranks runs one watchdog thread from connect() until the last collective. It
// ends the process, with exit code 76 and one message per job, when another rank is lost or when there is no progress:
// docs/faults.md. Jobs of one process and the threads backend have none; the functions declared here then do nothing,
// and may still be called.
namespace muster::distributed {

// The process is in `phase` while this lives, with a fresh deadline. Afterwards the previous phase resumes, again with
// a fresh one. Scopes nest; one thread (the one that calls collectives) makes them. Until the first, a job is in
// kSetup.
class PhaseScope {
 public:
  explicit PhaseScope(Phase phase);
  ~PhaseScope();
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  Phase previous_;
};

// Seconds that a rank may go without progress in each phase; 0: no limit. Progress is a completed collective, a change
// of phase, and report_progress(). Waiting for another rank is not progress: a deadline bounds how far ranks may drift
// apart.
struct Deadlines {
  double setup = 3600;
  double step = 1800;
  double save = 3600;
  double evaluation = 3600;
};
// MUSTER_COLLECTIVE_TIMEOUT, when set, overrides all phases. Takes effect at once.
void set_deadlines(const Deadlines& deadlines);

// Reports that this rank is alive although it calls no collective: for long local work, at most every few seconds. Any
// thread; costs two atomic stores.
void report_progress();

// The folder in which a failing rank <r> writes flight-record-rank-<r>.json; it must exist by then. No
// record is written until this is called.
void keep_flight_records_in(const std::string& folder);

// The watchdog runs `action`, in a thread of its own, before it ends the process: it stops what would otherwise block
// other ranks (kernels of NCCL). It must not wait for the main thread, and has 3 s. At most 64 exist at once. Once the
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

// To be called before this rank reports an error that the other ranks do not share. Does not return when the watchdog
// is ending this process, or (for kPeerFailed, within 2 s) finds a lost rank: its message is the better one then.
void yield_to_watchdog(ExitCode code);

}  // namespace muster::distributed
