#include "base/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.h"
#include "base/host.h"
#include "base/text.h"

namespace muster {
namespace {

void require_replaceable(const std::string& path) {
  const auto refuse = [&](std::string_view why) {
    throw Error(ExitCode::kIo, fmt::format("Cannot write {}: {}.", path, why));
  };
  if (path.empty() || path.back() == '/') refuse("it names a folder, not a file");
  struct stat status;
  if (::lstat(path.c_str(), &status) != 0) return;  // new; any other reason shows when the file is created
  if (S_ISLNK(status.st_mode))
    refuse("it is a symbolic link, and files are not written through links. Give the path of the file itself");
  if (S_ISDIR(status.st_mode)) refuse("it is a folder");
  if (!S_ISREG(status.st_mode)) refuse("it is a device, pipe or socket; only an ordinary file can be replaced whole");
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path, uint64_t expected_size) : path_(path), expected_size_(expected_size) {
  require_replaceable(path);
  static std::atomic<uint64_t> counter{0};
  // The name is cut so that prefix and suffix never push it over the limit of 255 bytes.
  const std::string stem = fmt::format("{}/.{}.tmp-{}-{}-", parent_of(path), name_of(path).substr(0, 100),
                                       host_name().substr(0, 64), ::getpid());
  do {
    const std::string candidate = fmt::format("{}{}", stem, counter++);
    file_.reset(::open(candidate.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file_.get() >= 0) temporary_ = candidate;
  } while (file_.get() < 0 && (errno == EEXIST || errno == EINTR));
  if (file_.get() < 0) fail("create it", errno);
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::discard() noexcept {
  file_.reset();
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

void AtomicFile::fail(const std::string& what, int error_number) {
  std::string message = fmt::format("Cannot write {}: could not {}: {}.", path_, what, std::strerror(error_number));
  if (error_number == ENOSPC || error_number == EDQUOT) {
    // What is free is asked for after the temporary file is gone: it is what a second attempt would find.
    discard();
    const std::string free = free_space_text(parent_of(path_));
    message += fmt::format(" It needs {}{}{}{}{}. Free some space or choose another folder, and try again.",
                           expected_size_ > 0 ? "" : "at least ",
                           size_text(static_cast<double>(std::max(expected_size_, size_))), free.empty() ? "" : "; ",
                           free, error_number == EDQUOT ? ", and your quota is used up" : "");
  }
  discard();
  throw Error(ExitCode::kIo, message);
}

void AtomicFile::write(std::string_view bytes) {
  size_ += bytes.size();
  if (const int error = try_write_all(file_.get(), bytes)) fail("write to it", error);
}

void AtomicFile::write_at(uint64_t position, std::string_view bytes) {
  if (::lseek(file_.get(), static_cast<off_t>(position), SEEK_SET) < 0) fail("write to it", errno);
  write(bytes);
}

void AtomicFile::commit() {
  while (::fsync(file_.get()) != 0)
    if (errno != EINTR) fail("flush it to the device", errno);
  // Network file systems may report a full disk only here. After EINTR the descriptor is closed all the same.
  if (::close(file_.release()) != 0 && errno != EINTR) fail("close it", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("give it its name", errno);
  temporary_.clear();
  sync_folder(parent_of(path_));
}

void write_file_atomically(const std::string& path, std::string_view bytes) {
  AtomicFile file(path, bytes.size());
  file.write(bytes);
  file.commit();
}

bool make_folder_atomically(const std::string& path, const std::function<void(const std::string& folder)>& fill) {
  namespace fs = std::filesystem;
  const fs::path given = fs::absolute(path).lexically_normal();
  const fs::path target = given.has_filename() ? given : given.parent_path();
  const std::string parent = target.parent_path().string(), name = target.filename().string();
  make_folders(parent);
  std::string outer = fmt::format("{}/.{}.new-XXXXXX", parent, name.substr(0, 100));
  if (!::mkdtemp(outer.data())) throw_io_error("make the folder", path, errno);
  const auto clean_up = [&] {
    std::error_code ignored;
    fs::remove_all(outer, ignored);
  };
  try {
    // The folder within has the permissions that any new folder gets; until it moves, the one around it protects it.
    const std::string building = outer + "/" + name;
    make_folders(building);
    fill(building);
    if (::rename(building.c_str(), target.c_str()) != 0) {
      const int error = errno;
      clean_up();
      if (error == ENOTEMPTY || error == EEXIST || error == ENOTDIR) return false;
      throw_io_error("make the folder", path, error);
    }
  } catch (...) {
    clean_up();
    throw;
  }
  clean_up();
  sync_folder(parent);
  return true;
}

}  // namespace muster
