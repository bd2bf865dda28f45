#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/files.h"

namespace muster::run {

using Scalars = std::vector<std::pair<std::string, double>>;  // tag, value

// A row of metrics.jsonl as TensorBoard's scalars: train/loss, train/terms/ce, valid/metrics/WA ... Fields that are no
// numbers, and null, are left out.
Scalars scalars_of(const nlohmann::json& row);

// The run's scalars for TensorBoard: the one file events.out.tfevents.<seconds>.<host>.muster of a run directory.
// Whatever kills the process, the file is readable up to its last whole record. Values are float32 there: metrics.jsonl
// is what to compute with.
class EventFile {
 public:
  // continue_after: the run continues after this step: records of later steps, and a torn end, are cut off the file
  // that is there; one is begun if there is none. Without it a new file is begun. Throws Error(kIo).
  explicit EventFile(const std::string& run_directory, std::optional<uint64_t> continue_after = std::nullopt);

  // Steps never decrease. wall_time: seconds since 1970. One write(2); when it fails the file is as before, and
  // Error(kIo) is thrown.
  void append(uint64_t step, double wall_time, const Scalars& scalars);
  // What was appended survives a power failure after this. Throws Error(kIo).
  void sync();
  const std::string& path() const { return path_; }

 private:
  void append_record(const std::string& event);
  [[noreturn]] void fail(const std::string& what, int error_number) const;

  std::string path_;
  Descriptor file_;
  uint64_t size_ = 0;
};

}  // namespace muster::run
