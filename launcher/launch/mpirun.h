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
  std::vector<std::string> command;  // a muster command and its arguments: train, evaluate, predict
};

// The job ended with another exit code than 0; its ranks have said why.
class LaunchedJobFailed : public distributed::Error {
 public:
  explicit LaunchedJobFailed(int code)
      : Error(static_cast<distributed::ExitCode>(code), "the job ended with exit code " + std::to_string(code)) {}
};

// Starts `muster <command>` on several ranks of this machine, gives them this process's standard streams, passes on
// signals, and throws LaunchedJobFailed unless it ends with 0. Sets no option of mpirun that overrides one of its safeguards. Throws Error(kUsage) where
// mpirun is missing or would refuse (root, too few cores), naming the flag that a user may add.
void launch(const LaunchOptions& options);

}  // namespace muster::launcher
