#pragma once

#include <string>
#include <vector>

namespace muster::launcher {

struct HostSlots {
  std::string host;
  int slots = 1;  // ranks that it is meant for
};

// "a:4,b:4", a host without a number having one slot. Throws Error(kUsage), naming the part, for what is not that, and
// for a host that comes twice.
std::vector<HostSlots> parse_hosts(const std::string& text);

// Open MPI's format: a line "a slots=4" per host; # begins a comment. Every line must give slots: another machine's
// cores cannot be counted from here. Throws Error(kUsage) with file:line, as above.
std::vector<HostSlots> read_hostfile(const std::string& path);

}  // namespace muster::launcher
