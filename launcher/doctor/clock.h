#pragma once

#include <string>
#include <vector>

#include "distributed/communicator.h"
#include "launcher/doctor/check.h"

namespace muster::launcher::doctor {

// What a rank's clock showed when it entered and left each of the same gatherings of all ranks, in seconds since 1970.
struct Stamps {
  std::vector<double> entered, left;
};

// How far `other` is ahead of `own`: no rank leaves a gathering before all have entered it, which bounds the offset
// from both sides.
struct Offset {
  double lowest, highest;
};
Offset offset_of(const Stamps& other, const Stamps& own);

// "clock": how far the ranks' clocks are from rank 0's. Collective; report counts on rank 0.
void check_clocks(distributed::Communicator& communicator, const std::vector<std::string>& hosts, const Report& report);

}  // namespace muster::launcher::doctor
