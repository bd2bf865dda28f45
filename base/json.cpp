#include "base/json.h"

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "base/files.h"

namespace muster {

std::string json_text(const nlohmann::json& value, int indent) {
  return value.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

nlohmann::json read_json_object(const std::string& path) {
  nlohmann::json value = nlohmann::json::parse(read_file_if_there(path, 64 << 20).value_or(""), nullptr, false);
  return value.is_object() ? value : nlohmann::json::object();
}

std::vector<nlohmann::json> json_rows(const std::string& lines) {
  std::vector<nlohmann::json> rows;
  for (size_t start = 0, end = 0; (end = lines.find('\n', start)) != lines.npos; start = end + 1) {
    nlohmann::json row = nlohmann::json::parse(lines.begin() + static_cast<int64_t>(start),
                                               lines.begin() + static_cast<int64_t>(end), nullptr, false);
    if (row.is_object()) rows.push_back(std::move(row));
  }
  return rows;
}

nlohmann::json member_of(const nlohmann::json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() ? nlohmann::json() : *found;
}

std::optional<double> number_in(const nlohmann::json& object, const char* name) {
  const auto found = member_of(object, name);
  return found.is_number() ? std::optional(found.get<double>()) : std::nullopt;
}

std::string text_in(const nlohmann::json& object, const char* name) {
  const auto found = member_of(object, name);
  return found.is_string() ? found.get<std::string>() : "";
}

nlohmann::json number_or_null(double value) { return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(); }

}  // namespace muster
