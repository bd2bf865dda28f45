#include "launcher/work/duration.h"

#include <cstdint>
#include <cstdio>

namespace muster::launcher {

std::string duration_text(double seconds) {
  char text[32];
  const auto minutes = static_cast<int64_t>(seconds / 60 + 0.5);
  if (seconds < 120)
    std::snprintf(text, sizeof text, "%.0fs", seconds);
  else
    std::snprintf(text, sizeof text, "%ldh%02ldm", minutes / 60, minutes % 60);
  return text;
}

}  // namespace muster::launcher
