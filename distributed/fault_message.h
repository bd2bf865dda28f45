#pragma once

#include <string>
#include <vector>

#include "distributed/flight_record.h"

namespace muster::distributed {

// Where a rank is, as its watchdog tells others.
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
  bool heard = false;  // false: `status` is not known
  RankStatus status;
  bool died = false;    // its process has ended without a word
  bool silent = false;  // nothing was heard of it for a time in which it should have spoken several times
};

// Why `missing` ranks are held to have failed, and where each was last seen. `waiting` is what the rank that found it
// was doing. `no_progress`: seconds of the deadline that has passed; 0: none has, ranks have died. Without missing
// ranks: nobody can be blamed.
std::string describe_fault(const std::vector<int>& missing, const std::vector<PeerView>& ranks,
                           const RankStatus& waiting, double no_progress);

// "Rank 0 waits in collective 7 of world, all_reduce_sum(float32 [7]) for gradients, in phase step; the last that it
// completed: ..."
std::string describe_place(int rank, const RankStatus& status);

}  // namespace muster::distributed
