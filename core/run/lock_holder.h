#pragma once

#include <chrono>
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>

#include "base/host.h"

namespace muster::run {

// What a lock file says about the process that holds it.
struct LockHolder {
  std::string id;  // 32 hexadecimal digits, of this lock alone
  HostIdentity where;
  std::string job, command, started;
  int64_t restarts = 0;
  std::chrono::milliseconds interval{0};  // between renewals
  timespec renewed{};                     // the file's modification time, by the file server's clock

  // "mpirun 4711 (host n1, process 4712, since 2026-01-01 12:00:00 UTC)"
  std::string name() const;
  std::string to_text() const;
};

// This process, under a new id.
LockHolder new_holder();

// nullopt if there is no such file. Asks an NFS server anew. Throws Error(kIo) if it cannot be read, Error(kUsage) if
// it is not a lock that muster wrote.
std::optional<LockHolder> read_lock(const std::string& path);

}  // namespace muster::run
