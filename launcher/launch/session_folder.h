#pragma once

#include <map>
#include <string>

namespace muster::launcher {

// A folder of its own for everything that Open MPI keeps on this machine for a job: shared-memory segments and session files. It goes
// with its contents when this object does, however the job has ended. What launchers of this user that were killed have left is removed first.
class SessionFolder {
 public:
  SessionFolder();  // where none can be made Open MPI keeps its own places
  ~SessionFolder();
  SessionFolder(const SessionFolder&) = delete;
  SessionFolder& operator=(const SessionFolder&) = delete;

  // The settings that make mpirun and its ranks use it.
  std::map<std::string, std::string> environment() const;

 private:
  std::string path_;
  int lock_ = -1;
};

}  // namespace muster::launcher
