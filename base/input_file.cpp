#include "base/input_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace muster {

// O_NONBLOCK: opening a pipe would otherwise wait for a writer before it can be refused.
InputFile::InputFile(const std::string& path, ExitCode unreadable)
    : path_(path), unreadable_(unreadable), file_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  struct stat status;
  if (file_.get() < 0 || ::fstat(file_.get(), &status) != 0) fail("open", std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("read", "it is not an ordinary file");
  size_ = static_cast<uint64_t>(status.st_size);
}

void InputFile::read(uint64_t position, void* out, uint64_t count) {
  char* next = static_cast<char*>(out);
  while (count > 0) {
    const ssize_t got = ::pread(file_.get(), next, std::min<uint64_t>(count, 1 << 30), static_cast<off_t>(position));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("read", std::strerror(errno), errno == EIO ? unreadable_ : ExitCode::kIo);
    if (got == 0) fail("read", "it became shorter while it was read");
    next += got;
    position += static_cast<uint64_t>(got);
    count -= static_cast<uint64_t>(got);
  }
}

void InputFile::fail(const std::string& verb, const std::string& why, ExitCode code) const {
  throw Error(code, fmt::format("Cannot {} {}: {}.", verb, path_, why));
}

}  // namespace muster
