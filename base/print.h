#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <utility>

#include "base/text.h"

namespace muster {

// To standard output and standard error, printable (base/text.h): names from files are among it. As fmt::print, which
// throws when nobody reads them any more (a closed pipe); here the stream remembers the error (std::ferror), and main()
// reports it once, at the end.
template <typename... Arguments>
void print_out(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  std::fputs(printable(fmt::format(format, std::forward<Arguments>(arguments)...)).c_str(), stdout);
}
template <typename... Arguments>
void print_error(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  std::fputs(printable(fmt::format(format, std::forward<Arguments>(arguments)...)).c_str(), stderr);
}

}  // namespace muster
