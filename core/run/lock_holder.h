#pragma once

#include <chrono>
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>

namespace muster::run {

// What a lock file says about the process that holds it.
struct LockHolder {
  std::string id;  // 32 hex digits, of this lock alone
  std::string host, boot_id, process_namespace;
  int64_t process = 0;
  uint64_t process_start = 0;  // clock ticks since the machine's boot: tells it from a later process of the same number
  std::string job, command, started;
  int64_t restarts = 0;
  std::chrono::milliseconds interval{0};  // between renewals
  timespec renewed{};                     // the file's modification time, by the file server's clock

  // "mpirun 4711 (host n1, process 4712, since 2026-01-01 12:00:00 UTC)"
  std::string name() const;
  std::string to_text() const;
};

// This process, under a new id.
LockHolder this_process();

// Nothing if there is no such file. Asks an NFS server anew. Throws Error(kIo) if it cannot be read, Error(kUsage) if
// it is no lock of ours.
std::optional<LockHolder> read_lock(const std::string& path);

// Whether the holder, on this machine, still runs; nothing when it is of another one, or of another container, and
// cannot be asked.
std::optional<bool> is_running(const LockHolder& holder, const LockHolder& asks);

}  // namespace muster::run
