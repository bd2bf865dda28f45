#pragma once

#include <google/protobuf/message.h>

#include <functional>
#include <string>

namespace muster::config {

// Sets a singular field, or adds to a repeated one, from its text-format form ("3", "\"text\"", "K_FOLD"). Returns what
// is wrong with the value, with `path` as the field's name, or "" when it was taken. Stricter than text format: enums
// by name only, no "not set" enum value, no octal numbers, strings that are text. Scalar fields only.
std::string set_from_text(google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                          const std::string& path, const std::string& value);

// "a whole number from 0 to 4294967295", "true or false", ...
std::string wanted_value(const google::protobuf::FieldDescriptor& field);

// `over` on top of `base`, as MergeFrom, but a repeated field that `over` sets replaces that of `base`.
void merge_over(google::protobuf::Message& base, const google::protobuf::Message& over);

// Calls `visit(path, message that holds the field, field)` for every field that is set, blocks before what is in them.
using Visit =
    std::function<void(const std::string&, const google::protobuf::Message&, const google::protobuf::FieldDescriptor&)>;
void for_each_set_field(const google::protobuf::Message& message, const Visit& visit, const std::string& prefix = "");

// Whether the field at a dotted path is set, and with which message; {nullptr, nullptr} when it or a block around it is
// not.
struct FieldAt {
  const google::protobuf::Message* message = nullptr;
  const google::protobuf::FieldDescriptor* field = nullptr;
};
FieldAt find_field(const google::protobuf::Message& message, const std::string& path);

}  // namespace muster::config
