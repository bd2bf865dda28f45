#pragma once

#include <string>
#include <vector>

#include "distributed/error.h"

namespace muster::launcher {

struct LaunchOptions {
  int ranks = 0;                     // 0: one per core this process may use
  bool oversubscribe = false;
  bool allow_run_as_root = false;
  bool dry_run = false;              // print the command instead
  int max_restarts = 0;              // after failures that a restart may help; for train and resume
  std::vector<std::string> command;  // a muster command and its arguments: train, resume, evaluate, predict
};

// Name of the environment variable by which restarted jobs learn when the first of them was started (seconds since 1970).
constexpr const char* kLaunchStarted = "MUSTER_LAUNCH_STARTED";

// The job ended with another exit code than 0; its ranks have said why.
class LaunchedJobFailed : public distributed::Error {
 public:
  explicit LaunchedJobFailed(int code, const std::string& why_no_more = "")
      : Error(static_cast<distributed::ExitCode>(code),
              "the job ended with exit code " + std::to_string(code) + (why_no_more.empty() ? "" : "; " + why_no_more)) {}
};

// Starts `muster <command>` on several ranks of this machine (child.h says how signals reach them), and throws LaunchedJobFailed unless it ends
// with 0. A rank that was killed makes kPeerFailed of mpirun's 128 + signal, unless this process was told to stop. Afterwards no process and no shared memory of
// the job is left. Sets no option of mpirun that overrides one of its safeguards. Throws Error(kUsage) where mpirun is missing or would
// refuse (root, too few cores), naming the flag that a user may add.
//
// With max_restarts the job is started again after exit codes 70, 74 and 76, so that it goes on from its newest good checkpoint; not
// when that is no newer than at the failure before.
void launch(const LaunchOptions& options);

}  // namespace muster::launcher
