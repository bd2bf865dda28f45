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
#include "launcher/doctor/doctor.h"

namespace muster::launcher::doctor {

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The ranks of a job that the doctor has started. Checks of them are collective, and come to the same state on all.
struct Ranks {
  distributed::Communicator& communicator;
  Report report;                   // of rank 0's findings; others' are dropped
  std::vector<std::string> hosts;  // of each rank
  size_t machines;                 // that they are on
  std::string folder;              // an empty one for trying files in; "": no checks of files
  std::unique_ptr<distributed::Communicator> gpus = nullptr;  // null until NCCL has connected them
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

// "shared" to "visibility": what checkpoints and the run lock rely on.
extern const std::vector<Check<Ranks>> kFileChecks;

// What each rank of a job does that `muster doctor` has started: checks its machine and, with the others, clocks,
// all-reduce and files. Rank 0 writes the findings to standard output, one line each, for parse_line(). Throws
// Error(kPeerFailed) when there are not as many ranks as were `started`. options: its directory is a folder in which
// files may be made, which the doctor removes; empty: no checks of files.
void run_as_rank(const DoctorOptions& options, int started);

// A line of a rank: {"ranks": n, "hosts": n} once all are connected, {"finding": ...}, and last {"done": true}. Null
// for any other line.
nlohmann::json parse_line(const std::string& line);

}  // namespace muster::launcher::doctor
