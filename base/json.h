#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

// JSON in files and between processes. What is read may have been written by anyone, or may be half written.
namespace muster {

// On one line, or indented by so many blanks. Bytes that are not UTF-8, such as those of paths, are replaced.
std::string json_text(const nlohmann::json& value, int indent = -1);

// The object in a file of at most 64 MiB; an empty one when the file cannot be read or holds something else.
nlohmann::json read_json_object(const std::string& path);

// The objects of JSON lines; lines that hold something else, or have no end, are left out.
std::vector<nlohmann::json> json_rows(const std::string& lines);

// A member of what may be an object and may have it: null, nothing or "" where it is not so, or has another type.
nlohmann::json member_of(const nlohmann::json& object, const char* name);
std::optional<double> number_in(const nlohmann::json& object, const char* name);
std::string text_in(const nlohmann::json& object, const char* name);

// JSON has no other: null for what is not finite.
nlohmann::json number_or_null(double value);

}  // namespace muster
