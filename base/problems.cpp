#include "base/problems.h"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <cstdlib>

#include "base/text.h"

namespace muster {

void Problems::at_line(int line, const std::string& message) {
  insert(line, fmt::format("{}:{}: {}", path_, line, message));
}

void Problems::at(const std::string& place, const std::string& message) {
  int line = 0;
  if (place.compare(0, path_.size() + 1, path_ + ":") == 0) line = std::atoi(place.c_str() + path_.size() + 1);
  insert(line, fmt::format("{}: {}", place, message));
}

void Problems::insert(int line, std::string text) {
  ++count_;
  std::pair<int, std::string> entry(line == 0 ? INT_MAX : line, std::move(text));
  const auto later = [](const auto& a, const auto& b) { return a.first < b.first; };
  listed_.insert(std::upper_bound(listed_.begin(), listed_.end(), entry, later), std::move(entry));
  if (listed_.size() > limit_) listed_.pop_back();
}

std::vector<std::string> Problems::lines() const {
  std::vector<std::string> result;
  for (const auto& [line, text] : listed_) result.push_back(text);
  const int64_t more = count_ - static_cast<int64_t>(listed_.size());
  if (more > 0) result.push_back(fmt::format("... and {} more", more));
  return result;
}

void Problems::throw_if_any(ExitCode code) const {
  if (empty()) return;
  throw Error(code, fmt::format("{}: {}:\n  {}", path_, plural(count_, "problem"), join(lines(), "\n  ")));
}

}  // namespace muster
