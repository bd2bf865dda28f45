#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Files and folders. Unless something else is said, everything here throws Error(kIo) that names the path.
namespace muster {

// Throws Error(kIo) "Cannot <what> <path>: <the system's reason>."; error_number: errno.
[[noreturn]] void throw_io_error(const std::string& what, const std::string& path, int error_number);

// Owns a file descriptor and closes it; -1: none.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : number_(other.release()) {}
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return number_; }
  void reset(int number = -1);
  // For the caller to close.
  int release() { return std::exchange(number_, -1); }

 private:
  int number_;
};

// All that reads files refuses what is not an ordinary file, and opens it without waiting: a pipe would be waited for
// until somebody writes to it, a device has no end.

Descriptor open_to_read(const std::string& path);
// All bytes of a file. Throws Error(kBadData) when there are more than `limit`.
std::string read_file(const std::string& path, uint64_t limit);
// The same for files that may also be the pipe of a shell's <(command). A pipe that nobody writes to is empty.
std::string read_file_or_pipe(const std::string& path, uint64_t limit);
// The same, but nothing when it cannot be read, for whatever reason, or is larger than `limit`.
std::optional<std::string> read_file_if_there(const std::string& path, uint64_t limit);
// The first `count` bytes, or all if there are fewer; empty when it cannot be read.
std::string head_of(const std::string& path, uint64_t count);
// The first line without its end; empty when there is none or it cannot be read. Reads at most 64 KiB.
std::string first_line_of(const std::string& path);

// Writes all bytes, however many calls that takes. `path` is for the message.
void write_all(int descriptor, std::string_view bytes, const std::string& path);
// The same without an exception: returns the errno of the failure, 0 for success. Safe while a process is ending.
int try_write_all(int descriptor, std::string_view bytes) noexcept;

// The names in a folder except . and .., sorted; none when it does not exist.
std::vector<std::string> list_folder(const std::string& folder);
// With its parents; folders that exist already are fine. The entry of each new one is flushed to the device.
void make_folders(const std::string& folder);
void rename_folder(const std::string& from, const std::string& to);
// With the files in it, but not with folders in it. A folder that does not exist is fine.
void remove_folder(const std::string& folder);
// "." for a path without a slash.
std::string parent_of(const std::string& path);
// The last part of a path, without slashes at its end.
std::string name_of(const std::string& path);

// Flushes a folder's entries (creations, renames, removals) to the device. File systems that do not support this are
// assumed not to need it.
void sync_folder(const std::string& folder);

struct Space {
  uint64_t size = 0, free = 0;           // bytes; what this user may use
  uint64_t inodes = 0, free_inodes = 0;  // inodes is 0 where the file system has no fixed number
};
// Of the file system that holds `path`; nothing when it does not say.
std::optional<Space> free_space(const std::string& path);
// "60 KB are free there", with a note when no more files can be created; empty when the file system does not say.
std::string free_space_text(const std::string& path);

// 32 hexadecimal digits from the system's random numbers.
std::string make_uuid();

}  // namespace muster
