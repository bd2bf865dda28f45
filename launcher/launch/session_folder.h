#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launcher/launch/job_command.h"

namespace muster::launcher {

// A folder that a process may have left behind: it may have been killed.
struct LeftFolder {
  std::string path;
  double age;  // seconds since it was changed
};
// Those of this user in `parent` whose names begin with `prefix`.
std::vector<LeftFolder> left_folders(const std::string& parent, const std::string& prefix);

// A folder of its own for everything that Open MPI keeps on this machine for a job: shared-memory segments and session
// files. It is removed with its contents when this object is destroyed, however the job has ended. What killed
// launchers of this user have left behind is removed first.
class SessionFolder {
 public:
  // In /dev/shm if this many ranks have room there, else in TMPDIR or /tmp. Throws Error(kIo) when none has: Open MPI
  // would wait for ever, or ranks would crash.
  explicit SessionFolder(int ranks);
  ~SessionFolder();
  SessionFolder(const SessionFolder&) = delete;
  SessionFolder& operator=(const SessionFolder&) = delete;

  const std::string& path() const { return path_; }
  // The settings that make mpirun and its ranks use it.
  std::map<std::string, std::string> environment() const;

 private:
  std::string path_;
  int lock_ = -1;
};

// A folder for a job that mpirun starts on this machine alone, with its settings, and what such a job needs otherwise,
// added to `environment` where `here`
// has none; null for other jobs, because mpirun and srun would pass the settings on to machines without such a folder.
std::unique_ptr<SessionFolder> session_folder_for(const JobCommand& job, const LaunchEnvironment& here,
                                                  std::map<std::string, std::string>& environment);

}  // namespace muster::launcher
