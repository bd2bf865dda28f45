#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "distributed/communicator.h"
#include "launcher/doctor/check.h"

namespace muster::launcher::doctor {

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The ranks of a job that the doctor has started. Checks of them are collective, and come to the same state on all.
struct Ranks {
  distributed::Communicator& communicator;
  std::vector<std::string> hosts;  // of each rank
  size_t machines = 1;             // that they are on
  std::string folder;              // an empty one that all ranks see and somebody else removes; "": no checks of files
  std::vector<int64_t> written;    // bytes in each rank's file in it
  std::unique_ptr<distributed::Communicator> gpus;  // null until NCCL has connected them
  c10::Device gpu = c10::kCPU;

  bool is_first() const { return communicator.rank() == 0; }
  // For checks that compare ranks: with one rank the finding is skipped.
  bool is_alone(Finding& finding) const;
  // Runs `work` on every rank, and gathers what it returns. Throws Failure on all ranks when it threw on one. `work`
  // must not call collectives itself.
  std::vector<nlohmann::json> gather(const std::function<nlohmann::json()>& work,
                                     const std::string& fix = "report this with the output of muster doctor --json");
  // The finding is about this rank only.
  void blame(Finding& finding, size_t rank) const;
};

// "clock" to "nccl" and "gpu_all_reduce_64MB".
extern const std::vector<Check<Ranks>> kRankChecks;
// "shared" to "visibility": what checkpoints and the run lock rely on.
extern const std::vector<Check<Ranks>> kFileChecks;

struct RankOptions {
  int expected_ranks = 1;  // that were started
  std::string folder;      // in which files may be made; the doctor removes it. Empty: no checks of files
  double timeout = 60;     // seconds after which a rank that makes no progress is given up
};

// What each rank of a job does that `muster doctor` has started: checks its machine and, with the others, clocks,
// all-reduce and files. Rank 0 writes the findings to standard output, one line each, for parse_line(). Throws
// Error(kPeerFailed) when the ranks do not see each other.
void run_as_rank(const RankOptions& options);

// A line of a rank: {"ranks": n, "hosts": n} once all are connected, {"finding": ...}, and last {"done": true}. Null
// for any other line.
nlohmann::json parse_line(const std::string& line);

}  // namespace muster::launcher::doctor
