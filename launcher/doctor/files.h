#pragma once

#include <string>
#include <vector>

#include "distributed/communicator.h"
#include "launcher/doctor/check.h"

namespace muster::launcher::doctor {

// The file system that a path is on, as /proc/self/mounts lists it.
struct Mount {
  std::string type, source, point, options;
};
Mount mount_of(const std::string& path, const std::string& mounts);

// "directory" and "free_space" of an existing folder: needs no ranks, makes no files.
std::vector<Finding> check_directory(const std::string& path, const Mount& mount, bool several_hosts);

// "shared", "rename", "link", "fsync", "write_speed", "read_speed", "visibility": what checkpoints and the run lock
// rest on, tried in `folder`, an empty one that all ranks see and somebody else removes. Collective; report counts on
// rank 0.
void check_files(distributed::Communicator& communicator, const std::vector<std::string>& hosts,
                 const std::string& folder, const Report& report);

}  // namespace muster::launcher::doctor
