#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "distributed/communicator.h"
#include "launcher/doctor/check.h"

namespace muster::launcher::doctor {

struct RankOptions {
  int expected_ranks = 1;  // that were started
  std::string folder;      // in which files may be made; the starter removes it. Empty: no checks of files
  double timeout = 60;     // seconds after which a rank that says nothing is given up
};

// What each rank of a job does that `muster doctor` has started: checks its machine, and with the others clocks,
// all-reduce and files. Rank 0 writes what is found to standard output, one line each, which parse_line() understands.
// Throws Error(kPeerFailed) when the ranks do not see each other.
void run_as_rank(const RankOptions& options);

// A line of a rank: {"ranks": n, "hosts": n} once all have met, {"finding": ...}, and last {"done": true}. Null for any
// other line.
nlohmann::json parse_line(const std::string& line);

// Runs `work` on every rank, and gathers what it returns; an exception becomes {"error": what()}. Collective; `work`
// must not call collectives itself.
std::vector<nlohmann::json> each_rank(distributed::Communicator& communicator,
                                      const std::function<nlohmann::json()>& work);

// "rank 1 on node2: what" of the first rank with an error; empty when there is none.
std::string first_error(const std::vector<nlohmann::json>& answers, const std::vector<std::string>& hosts);

}  // namespace muster::launcher::doctor
