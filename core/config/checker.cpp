#include "core/config/checker.h"

#include <fmt/format.h>

#include <cmath>

#include "core/config/fields.h"
#include "core/config/resolved_text.h"

namespace muster::config {

namespace {

int suspicion(const std::string& place) {
  if (place == "default") return 0;
  if (place.rfind("preset ", 0) == 0) return 1;
  return place.rfind("--set ", 0) == 0 ? 3 : 2;
}

}  // namespace

Checker Checker::in(const std::string& block) const {
  Checker checker = *this;
  checker.block_ = full(block);
  return checker;
}

std::string Checker::value(const std::string& path) const {
  const FieldAt at = find_field(experiment(), full(path));
  return at.field == nullptr ? "not set" : value_text(*at.message, *at.field, -1);
}

double Checker::number(const std::string& path) const {
  using Field = google::protobuf::FieldDescriptor;
  const FieldAt at = find_field(experiment(), full(path));
  if (at.field == nullptr) return 0;
  const auto& reflection = *at.message->GetReflection();
  switch (at.field->cpp_type()) {
    case Field::CPPTYPE_UINT32:
      return reflection.GetUInt32(*at.message, at.field);
    case Field::CPPTYPE_UINT64:
      return static_cast<double>(reflection.GetUInt64(*at.message, at.field));
    default:
      return reflection.GetDouble(*at.message, at.field);
  }
}

void Checker::fail(const std::vector<std::string>& paths, const std::string& message) const {
  std::string most_likely;
  for (const std::string& path : paths) {
    if (is_unusable(path)) return;
    const std::string found = place(path);
    if (most_likely.empty() || suspicion(found) > suspicion(most_likely)) most_likely = found;
  }
  problems_.at(most_likely, message);
}

void Checker::fail_absent(const std::string& path, const std::string& message) const {
  if (!complete_ || is_unusable(path)) return;
  std::string block = full(path);
  while (!block.empty()) {
    const size_t dot = block.rfind('.');
    block = dot == std::string::npos ? "" : block.substr(0, dot);
    const std::string found = where(loaded_, block);
    if (found != "default") return problems_.at(found, message);
  }
  problems_.at_line(1, message);
}

void Checker::require(bool right, const std::string& path, const std::string& wanted) const {
  if (!right) fail({path}, fmt::format("{} must be {}, not {}", full(path), wanted, value(path)));
}

void Checker::share(const std::string& path) const {
  const double share = number(path);
  require(share >= 0 && share < 1, path, "at least 0 and less than 1");
}

void Checker::positive(const std::string& path) const {
  require(std::isfinite(number(path)) && number(path) > 0, path, "a positive number");
}

void Checker::not_negative(const std::string& path) const {
  require(std::isfinite(number(path)) && number(path) >= 0, path, "0 or a positive number");
}

void Checker::count(const std::string& path, uint32_t largest) const {
  require(number(path) >= 1 && number(path) <= largest, path, fmt::format("from 1 to {}", largest));
}

}  // namespace muster::config
