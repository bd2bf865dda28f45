#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace muster::launcher::doctor {

// A limit of this process; -1: none.
struct Limit {
  int64_t soft = -1;
  int64_t hard = -1;
};

// A mounted file system's room; all 0 when it could not be asked.
struct Room {
  int64_t bytes = 0;
  int64_t free_bytes = 0;  // for this user
  int64_t inodes = 0;      // 0: the file system does not count them
  int64_t free_inodes = 0;
};

// Everything that the checks of one machine know of it. Checks are functions of this, so that any breakage can be
// staged.
struct Machine {
  std::string host;
  std::vector<std::string> addresses;  // of that name; empty when it does not resolve
  std::map<std::string, std::string> environment;
  std::string maps;                     // /proc/self/maps: what is loaded into this process
  std::string mounts;                   // /proc/self/mounts
  std::map<std::string, Limit> limits;  // open_files, processes, stack, locked_memory, file_size, address_space
  bool has_shared_memory = false;       // /dev/shm is there
  Room shared_memory;
  double load = 0;           // of the last minute
  int cores = 1;             // in this process's affinity mask
  double core_quota = 0;     // of its control groups, in cores; 0: none
  int64_t memory = 0;        // bytes, of the machine
  int64_t memory_limit = 0;  // of its control groups; 0: none
  bool has_infiniband = false;
  std::string nvidia_driver;  // version of the kernel's module; empty: none
  int nvidia_gpus = 0;        // that the kernel has
  int cuda_of_driver = 0;     // highest version that it serves, 1000 x major + 10 x minor; 0: unknown
  int cuda_of_runtime = 0;    // of the libcudart in this process
};

Machine detect_machine();

std::string read_text(const std::string& path);
Room room_of(const std::string& path);
std::string variable(const Machine& machine, const std::string& name);

}  // namespace muster::launcher::doctor
