#include "launcher/work/seed_option.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <limits>

#include "base/text.h"

namespace muster::launcher {

std::string seed_problem(const std::string& text) {
  uint64_t seed = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, seed);
  if (error == std::errc() && rest == end) return "";
  return fmt::format("{} is no seed, which is a whole number from 0 to {}", in_quotes(text),
                     std::numeric_limits<uint64_t>::max());
}

}  // namespace muster::launcher
