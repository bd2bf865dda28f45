#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/files.h"

namespace muster {

// An ordinary file that is read. Throws Error(kIo) naming it; for a device that cannot give a block any more (EIO) with
// the code `unreadable`.
class InputFile {
 public:
  explicit InputFile(const std::string& path, ExitCode unreadable = ExitCode::kIo);

  // When it was opened.
  uint64_t size() const { return size_; }
  // All `count` bytes, or throws.
  void read(uint64_t position, void* out, uint64_t count);

 private:
  [[noreturn]] void fail(const std::string& verb, const std::string& why, ExitCode code = ExitCode::kIo) const;

  std::string path_;
  ExitCode unreadable_;
  Descriptor file_;
  uint64_t size_ = 0;
};

}  // namespace muster
