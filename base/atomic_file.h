#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/files.h"

namespace muster {

// A file that appears under its name whole or not at all, even when the process or the machine dies while writing:
// bytes go to a hidden temporary file in the same folder, `.<name>.tmp-<host>-<pid>-<n>`, which commit() renames. An
// existing file is replaced; a symbolic link is followed and stays a link. A process killed while writing leaves only
// that temporary file. Every failure throws Error(kIo) naming the file, the system's reason and, for a full disk or
// quota, the space needed and free; the temporary file is gone then and the file of that name is as it was.
class AtomicFile {
 public:
  // Creates the temporary file. `expected_size` (bytes; 0 = not known) is used for the message when the disk is full.
  // Refuses a path that is a folder, device, pipe or dangling link.
  explicit AtomicFile(const std::string& path, uint64_t expected_size = 0);
  // Discards what was written unless commit() succeeded.
  ~AtomicFile();

  void write(std::string_view bytes);
  // Bytes handed to write() so far.
  uint64_t size() const { return size_; }
  // Flushes the file to the device, renames it, and flushes the folder. Call once, last. If flushing the folder is what
  // fails, the new file is already in place and the error says so.
  void commit();

 private:
  void discard() noexcept;
  [[noreturn]] void fail(const std::string& what, int error_number);

  std::string path_;       // as given, for messages
  std::string target_;     // path_ with links followed
  std::string temporary_;  // empty when there is none
  uint64_t expected_size_ = 0;
  uint64_t size_ = 0;
  Descriptor file_;
};

// AtomicFile for bytes that are in memory already.
void write_file_atomically(const std::string& path, std::string_view bytes);

}  // namespace muster
