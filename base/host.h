#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace muster {

// This machine's name; "unknown" when it has none.
std::string host_name();

// Names a process on one machine, for as long as the machine runs.
struct HostIdentity {
  std::string host, boot_id;      // boot_id: of the machine, new at each start
  std::string process_namespace;  // of its container: process numbers mean something only within one
  int64_t process = 0;
  uint64_t process_start = 0;  // clock ticks since boot: tells it from a later process of the same number
};
HostIdentity this_process();

// Whether both can see each other's process numbers.
bool same_process_namespace(const HostIdentity& a, const HostIdentity& b);

// Whether the process still runs; nothing when it belongs to another machine or container, which cannot be asked. A
// dead process that nobody has waited for does not run.
std::optional<bool> is_running(const HostIdentity& process);

// What /proc says of a process: its parent, its state (R, S, Z ...) and its start. Nothing when there is none.
struct ProcessStatus {
  char state = 0;
  int64_t parent = 0;
  uint64_t start = 0;  // as process_start above
};
std::optional<ProcessStatus> process_status(int64_t process);

}  // namespace muster
