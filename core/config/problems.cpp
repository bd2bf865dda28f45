#include "core/config/problems.h"

#include <algorithm>

#include "base/error.h"

namespace muster::config {

namespace {
constexpr size_t kShown = 50;
}

void Problems::at_line(int line, const std::string& message) {
  problems_.push_back({line, path_ + ":" + std::to_string(line), message});
}

void Problems::at(const std::string& place, const std::string& message) {
  int line = 0;
  if (place.size() > path_.size() + 1 && place.compare(0, path_.size() + 1, path_ + ":") == 0) {
    line = std::atoi(place.c_str() + path_.size() + 1);
  }
  problems_.push_back({line, place, message});
}

void Problems::throw_if_any() const {
  if (problems_.empty()) return;
  std::vector<Problem> sorted = problems_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Problem& a, const Problem& b) {
    if ((a.line == 0) != (b.line == 0)) return b.line == 0;
    return a.line < b.line;
  });
  std::string text = path_ + ": " + std::to_string(sorted.size()) + (sorted.size() == 1 ? " problem:" : " problems:");
  for (size_t i = 0; i < sorted.size() && i < kShown; ++i) text += "\n  " + sorted[i].place + ": " + sorted[i].message;
  if (sorted.size() > kShown) text += "\n  ... and " + std::to_string(sorted.size() - kShown) + " more";
  throw Error(ExitCode::kBadConfig, text);
}

}  // namespace muster::config
