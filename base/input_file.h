#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"

namespace muster {

// An ordinary file that is read. Throws Error(kIo) naming it; for a device that cannot give a block any more (EIO) with
// the code `unreadable`.
class InputFile {
 public:
  explicit InputFile(const std::string& path, ExitCode unreadable = ExitCode::kIo);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  // When it was opened.
  uint64_t size() const { return size_; }
  // All `count` bytes, or throws.
  void read(uint64_t position, void* out, uint64_t count);

 private:
  [[noreturn]] void fail(const std::string& verb, const std::string& why, ExitCode code = ExitCode::kIo);

  std::string path_;
  ExitCode unreadable_;
  int descriptor_;
  uint64_t size_ = 0;
};

}  // namespace muster
