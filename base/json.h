#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// JSON in files and between processes. What is read may have been written by anyone, or may be half written.
namespace muster {

// On one line, or indented by so many blanks. Bytes that are not UTF-8, such as those of paths, are replaced.
std::string json_text(const nlohmann::json& value, int indent = -1);

// What `text` says; a discarded value (is_discarded()) when it is not JSON, or nests deeper than 100: working on such
// values recurses, and would overflow the stack.
nlohmann::json parse_json(std::string_view text);

// The object in a file of at most 64 MiB; an empty one when the file cannot be read or holds something else.
nlohmann::json read_json_object(const std::string& path);
// The same for a file that must be there: throws Error(kIo) when it cannot be read, Error(kBadData) when it holds
// something else. Both name it.
nlohmann::json require_json_object(const std::string& path);
// A member of an object of `file` that must be text; `name` is "member" or "member.member". Throws Error(kBadData) that
// names file and member, and says what is there.
std::string require_text(const nlohmann::json& object, const std::string& name, const std::string& file);

// The objects of JSON lines; lines that hold something else, or have no end, are left out.
std::vector<nlohmann::json> json_rows(const std::string& lines);

// A member of what may be an object and may have it: null, nothing or "" where it is not so, or has another type.
nlohmann::json member_of(const nlohmann::json& object, const char* name);
std::optional<double> number_in(const nlohmann::json& object, const char* name);
std::string text_in(const nlohmann::json& object, const char* name);

// JSON has no other: null for what is not finite.
nlohmann::json number_or_null(double value);

}  // namespace muster
