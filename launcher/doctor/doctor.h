#pragma once

#include <string>

#include "launcher/launch/job_command.h"

namespace muster::launcher::doctor {

struct DoctorOptions {
  JobRequest
      job;  // without a command. Ranks 0: the slots of the hosts, the tasks of the allocation, one per GPU, or two
  std::string directory = ".";  // where files are tried
  bool json = false;
  double timeout = 60;  // seconds of silence after which ranks are given up
};

// Checks this machine, then starts ranks as muster launch would and lets them check theirs, and each other. Prints
// every finding as it comes, or all as JSON. Leaves no files and no processes behind, also when it is interrupted.
// Returns the program's exit code: 0, 1 when something is broken, 130 when it was interrupted, or nobody reads what it
// prints. Throws Error(kUsage) when this process is itself one of several ranks, and for hosts that are none.
int examine(const DoctorOptions& options);

}  // namespace muster::launcher::doctor
