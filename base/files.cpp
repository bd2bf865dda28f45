#include "base/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "base/error.h"
#include "base/text.h"

namespace muster {
namespace {

constexpr int kNotOrdinary = -1;

// Opens an ordinary file, or a pipe if `pipes` and somebody writes to it. Never waits: O_NONBLOCK. Returns the errno of
// a failure, or kNotOrdinary.
int try_open(const std::string& path, bool pipes, Descriptor& file) {
  file.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) return errno;
  struct stat status;
  if (::fstat(file.get(), &status) != 0) return errno;
  if (S_ISDIR(status.st_mode)) return EISDIR;
  return S_ISREG(status.st_mode) || (pipes && S_ISFIFO(status.st_mode)) ? 0 : kNotOrdinary;
}

// Returns the errno of a failure, or kNotOrdinary, or EFBIG when there are more than `limit` bytes, of which `bytes`
// are the first then.
int try_read_all(const std::string& path, uint64_t limit, std::string& bytes, bool pipes = false) {
  Descriptor file;
  if (const int error = try_open(path, pipes, file)) return error;
  struct stat status;
  if (::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode))
    bytes.reserve(std::min(limit, static_cast<uint64_t>(status.st_size)) + 1);
  char piece[1 << 16];
  while (const ssize_t count = ::read(file.get(), piece, sizeof piece)) {
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      pollfd ready{file.get(), POLLIN, 0};
      ::poll(&ready, 1, 1000);
      continue;
    }
    if (count < 0) return errno;
    const uint64_t taken = std::min(static_cast<uint64_t>(count), limit - bytes.size());
    bytes.append(piece, static_cast<size_t>(taken));
    if (taken < static_cast<uint64_t>(count)) return EFBIG;
  }
  return 0;
}

[[noreturn]] void fail_to_read(const std::string& path, uint64_t limit, int error) {
  if (error == EFBIG)
    throw Error(ExitCode::kBadData, fmt::format("{} is larger than {}.", path, size_text(static_cast<double>(limit))));
  if (error == kNotOrdinary)
    throw Error(ExitCode::kIo, fmt::format("Cannot read {}: it is not an ordinary file.", path));
  throw_io_error("read", path, error);
}

}  // namespace

void throw_io_error(const std::string& what, const std::string& path, int error_number) {
  throw Error(ExitCode::kIo, fmt::format("Cannot {} {}: {}.", what, path, std::strerror(error_number)));
}

void Descriptor::reset(int number) {
  if (number_ >= 0) ::close(number_);
  number_ = number;
}

std::string read_file(const std::string& path, uint64_t limit) {
  std::string bytes;
  if (const int error = try_read_all(path, limit, bytes)) fail_to_read(path, limit, error);
  return bytes;
}

std::string read_file_or_pipe(const std::string& path, uint64_t limit) {
  std::string bytes;
  if (const int error = try_read_all(path, limit, bytes, true)) fail_to_read(path, limit, error);
  return bytes;
}

std::optional<std::string> read_file_if_there(const std::string& path, uint64_t limit) {
  std::string bytes;
  if (try_read_all(path, limit, bytes) != 0) return std::nullopt;
  return bytes;
}

std::string head_of(const std::string& path, uint64_t count) {
  std::string bytes;
  try_read_all(path, count, bytes);
  return bytes;
}

std::string first_line_of(const std::string& path) {
  const std::string bytes = head_of(path, 1 << 16);
  return bytes.substr(0, bytes.find('\n'));
}

Descriptor open_to_read(const std::string& path) {
  Descriptor file;
  if (const int error = try_open(path, false, file)) fail_to_read(path, 0, error);
  return file;
}

void write_all(int descriptor, std::string_view bytes, const std::string& path) {
  if (const int error = try_write_all(descriptor, bytes)) throw_io_error("write", path, error);
}

int try_write_all(int descriptor, std::string_view bytes) noexcept {
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor, bytes.data(), std::min<size_t>(bytes.size(), 1 << 30));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      pollfd ready{descriptor, POLLOUT, 0};
      ::poll(&ready, 1, 1000);
      continue;
    }
    if (count < 0) return errno;
    if (count == 0) return EIO;
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return 0;
}

std::vector<std::string> list_folder(const std::string& folder) {
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(folder.c_str()), ::closedir);
  if (!open) {
    if (errno == ENOENT) return {};
    throw_io_error("list", folder, errno);
  }
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(open.get());
    if (!entry && errno != 0) throw_io_error("list", folder, errno);
    if (!entry) break;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void make_folders(const std::string& folder) {
  if (::mkdir(folder.c_str(), 0777) == 0) return sync_folder(parent_of(folder));
  int error = errno;
  if (error == ENOENT && parent_of(folder) != folder) {
    make_folders(parent_of(folder));
    if (::mkdir(folder.c_str(), 0777) == 0) return sync_folder(parent_of(folder));
    error = errno;
  }
  struct stat status;
  if (error == EEXIST && ::stat(folder.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) return;
  throw_io_error("make the folder", folder, error);
}

void rename_folder(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_io_error(fmt::format("rename {} to", from), to, errno);
}

void remove_folder(const std::string& folder) {
  for (const std::string& name : list_folder(folder)) {
    const std::string file = folder + "/" + name;
    if (::unlink(file.c_str()) != 0 && errno != ENOENT) throw_io_error("remove", file, errno);
  }
  if (::rmdir(folder.c_str()) != 0 && errno != ENOENT) throw_io_error("remove", folder, errno);
}

std::string parent_of(const std::string& path) {
  const std::size_t end = path.find_last_not_of('/');
  const std::size_t slash = end == path.npos ? 0 : path.rfind('/', end);
  if (slash == path.npos) return ".";
  const std::size_t last = path.find_last_not_of('/', slash);
  return last == path.npos ? "/" : path.substr(0, last + 1);
}

std::string name_of(const std::string& path) {
  const std::size_t end = path.find_last_not_of('/') + 1;
  return path.substr(0, end).substr(path.substr(0, end).rfind('/') + 1);
}

void sync_folder(const std::string& folder) {
  const Descriptor opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  int error = opened.get() < 0 ? errno : 0;
  while (error == 0 && ::fsync(opened.get()) != 0)
    if (errno != EINTR) error = errno;
  if (error == 0 || error == EINVAL || error == ENOTSUP) return;
  throw Error(ExitCode::kIo,
              fmt::format("Files in the folder {} are written, but it cannot be flushed to the device: {}. After a "
                          "power failure they might be missing.",
                          folder, std::strerror(error)));
}

std::optional<Space> free_space(const std::string& path) {
  struct statvfs space;
  if (::statvfs(path.c_str(), &space) != 0 || space.f_blocks == 0) return std::nullopt;
  return Space{uint64_t{space.f_blocks} * space.f_frsize, uint64_t{space.f_bavail} * space.f_frsize, space.f_files,
               space.f_favail};
}

std::string free_space_text(const std::string& path) {
  const auto space = free_space(path);
  if (!space) return "";
  std::string text = fmt::format("{} are free there", size_text(static_cast<double>(space->free)));
  if (space->inodes > 0 && space->free_inodes == 0) text += ", but no more files can be created (no free inodes)";
  return text;
}

std::string make_uuid() {
  unsigned char bytes[16];
  if (::getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
    throw std::runtime_error("the system provides no random bytes");
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

}  // namespace muster
