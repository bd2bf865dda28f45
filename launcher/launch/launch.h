#pragma once

#include <string>

#include "base/error.h"
#include "launcher/launch/job_command.h"
#include "launcher/launch/restarts.h"

namespace muster::launcher {

struct LaunchOptions {
  JobRequest job;        // without its command, which is:
  RankCommand command;   // train, resume, evaluate, predict, search run or study with arguments
  bool dry_run = false;  // print the command instead
  int max_restarts = 0;  // after failures that a restart may fix; not for evaluate and predict
};

// Name of the environment variable by which restarted jobs learn when the first of them was started (seconds since
// 1970).
constexpr const char* kLaunchStarted = "MUSTER_LAUNCH_STARTED";
// Names a file that rank 0 makes once the ranks are connected.
constexpr const char* kReadyFile = "MUSTER_READY_FILE";

// The job ended with an exit code other than 0; its ranks have said why. what() is the job's last line.
class LaunchedJobFailed : public Error {
 public:
  LaunchedJobFailed(int code, const std::string& line) : Error(static_cast<ExitCode>(code), line) {}
};

// Starts `muster <command>` on several ranks (base/process.h says how signals reach them, rank_output.h where their
// output goes), and says in one line how it ended: printed if the exit code was 0, otherwise thrown as
// LaunchedJobFailed. If a rank was killed, mpirun's 128 + signal becomes kPeerFailed, unless this process was asked to
// stop. Afterwards no process and no shared memory of the job is left on this machine. Throws Error(kUsage) as
// job_command() does.
//
// With max_restarts the job is started again after exit codes 70, 74 and 76, so that it continues from its newest good
// checkpoint; not when that is no newer than at the failure before.
void launch(const LaunchOptions& options);

}  // namespace muster::launcher
