#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/files.h"

namespace muster {

// A file that appears under its name whole or not at all, even when the process or the machine dies while writing:
// bytes go to a hidden temporary file in the same folder, `.<name>.tmp-<host>-<pid>-<n>`, which is made by this process
// or not at all and which commit() renames. An existing file is replaced. Nothing is written through a symbolic link:
// in a folder that others can write to, somebody else may have put it there. A process killed while writing leaves only
// that temporary file. Every failure throws Error(kIo) naming the file, the system's reason and, for a full disk or
// quota, the space needed and free; the temporary file is gone then and the file of that name is as it was.
class AtomicFile {
 public:
  // Creates the temporary file. `expected_size` (bytes; 0 = not known) is used for the message when the disk is full.
  // Refuses a path that is a folder, device, pipe or symbolic link.
  explicit AtomicFile(const std::string& path, uint64_t expected_size = 0);
  // Discards what was written unless commit() succeeded.
  ~AtomicFile();

  void write(std::string_view bytes);
  // From a position of its own, between what others have written to temporary_path().
  void write_at(uint64_t position, std::string_view bytes);
  // Where the bytes lie until commit(), for a library that opens files by name.
  const std::string& temporary_path() const { return temporary_; }
  // Bytes handed to write() so far.
  uint64_t size() const { return size_; }
  // Flushes the file to the device, renames it, and flushes the folder. Call once, last. If flushing the folder is what
  // fails, the new file is already in place and the error says so.
  void commit();

 private:
  void discard() noexcept;
  [[noreturn]] void fail(const std::string& what, int error_number);

  std::string path_;
  std::string temporary_;  // empty when there is none
  uint64_t expected_size_ = 0;
  uint64_t size_ = 0;
  Descriptor file_;
};

// AtomicFile for bytes that are in memory already.
void write_file_atomically(const std::string& path, std::string_view bytes);

// A folder that appears under its name whole or not at all: `fill` writes into another one, of a random name and for
// this user only, beside it, which then gets the name. Its parents are made where they are missing. Returns false, and
// leaves nothing, when that name is taken by then by something that is not an empty folder. Throws Error(kIo), and what
// `fill` throws; nothing is left then either.
bool make_folder_atomically(const std::string& path, const std::function<void(const std::string& folder)>& fill);

}  // namespace muster
