#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <utility>

namespace muster {

// As fmt::print, which throws when nobody reads the output any more (a closed pipe). Here the stream remembers the error
// (std::ferror), and main() reports it once, at the end.
template <typename... Arguments>
void print(std::FILE* stream, fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  std::fputs(fmt::format(format, std::forward<Arguments>(arguments)...).c_str(), stream);
}
template <typename... Arguments>
void print(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  print(stdout, format, std::forward<Arguments>(arguments)...);
}

}  // namespace muster
