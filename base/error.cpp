#include "base/error.h"

#include <fmt/format.h>

#include <cstring>

namespace muster {

void throw_io_error(const std::string& what, const std::string& path, int error_number) {
  throw Error(ExitCode::kIo, fmt::format("Cannot {} {}: {}.", what, path, std::strerror(error_number)));
}

}  // namespace muster
