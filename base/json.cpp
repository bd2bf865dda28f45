#include "base/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

namespace muster {
namespace {

constexpr uint64_t kLargestFile = 64 << 20;  // bytes
constexpr int kDeepest = 100;

}  // namespace

std::string json_text(const nlohmann::json& value, int indent) {
  return value.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

nlohmann::json parse_json(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size() && depth <= kDeepest; ++i) {
    if (in_string) {
      if (text[i] == '\\')
        ++i;
      else if (text[i] == '"')
        in_string = false;
    } else if (text[i] == '"') {
      in_string = true;
    } else if (text[i] == '{' || text[i] == '[') {
      ++depth;
    } else if (text[i] == '}' || text[i] == ']') {
      --depth;
    }
  }
  if (depth > kDeepest) return nlohmann::json(nlohmann::json::value_t::discarded);
  return nlohmann::json::parse(text, nullptr, false);
}

nlohmann::json read_json_object(const std::string& path) {
  nlohmann::json value = parse_json(read_file_if_there(path, kLargestFile).value_or(""));
  return value.is_object() ? value : nlohmann::json::object();
}

nlohmann::json require_json_object(const std::string& path) {
  nlohmann::json value = parse_json(read_file(path, kLargestFile));
  if (value.is_object()) return value;
  throw Error(ExitCode::kBadData,
              fmt::format("{}: is damaged: it is not a JSON object, or nests deeper than {}", path, kDeepest));
}

std::string require_text(const nlohmann::json& object, const std::string& name, const std::string& file) {
  nlohmann::json value = object;
  for (size_t start = 0; start <= name.size();) {
    const size_t end = std::min(name.find('.', start), name.size());
    value = member_of(value, name.substr(start, end - start).c_str());
    start = end + 1;
  }
  if (value.is_string()) return value.get<std::string>();
  const std::string found = value.is_null() ? "missing" : in_quotes(json_text(value));
  throw Error(ExitCode::kBadData, fmt::format("{}: {} must be text; it is {}", file, name, found));
}

std::vector<nlohmann::json> json_rows(const std::string& lines) {
  std::vector<nlohmann::json> rows;
  for (size_t start = 0, end = 0; (end = lines.find('\n', start)) != lines.npos; start = end + 1) {
    nlohmann::json row = parse_json(std::string_view(lines).substr(start, end - start));
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
