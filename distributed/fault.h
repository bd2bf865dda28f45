#pragma once

#include <string>
#include <vector>

#include "distributed/flight_record.h"

namespace muster::distributed {

// Where a rank is, as its watchdog reports it to the others.
struct RankStatus {
  Phase phase = Phase::kSetup;
  FlightEntry entered;    // its newest collective
  FlightEntry completed;  // the last that completed
  bool inside() const { return entered.number > 0 && entered.completed == 0; }
};
static_assert(std::is_trivially_copyable_v<RankStatus>);

// What one watchdog knows about another rank.
struct PeerView {
  std::string host;
  bool heard = false;  // its status has arrived at least once
  RankStatus status;
  bool died = false;    // its process has ended without a goodbye
  bool silent = false;  // several heartbeats in a row are missing
};

// Why `missing` ranks are considered failed, and where each was last seen. `waiting` is what the rank that found the
// fault was doing. `no_progress`: seconds of the deadline that has passed; 0: none has, ranks have died. `missing` is
// empty when no rank can be blamed.
std::string describe_fault(const std::vector<int>& missing, const std::vector<PeerView>& ranks,
                           const RankStatus& waiting, double no_progress);

// "Rank 0 waits in collective 7 of world, all_reduce_sum(float32 [7]) for gradients, in phase step; the last that it
// completed: ..."
std::string describe_place(int rank, const RankStatus& status);

// How a process ends when its watchdog ends it.
struct Ending {
  int rank = 0;
  int size = 1;
  std::string host;
  std::vector<int> missing;
  std::string text;            // what has happened; the same on all ranks
  bool reports = false;        // this rank prints the message, for the whole job
  int reporters_process = -1;  // pidfd of the rank that does; -1: on another machine
  RankStatus status;
};

// Prints the message if this rank is the one to do so, writes the flight record, runs the abort hooks, and ends the
// process with exit code 76: after 3 s at the latest, whatever hangs.
[[noreturn]] void end_process(const Ending& ending);

}  // namespace muster::distributed
