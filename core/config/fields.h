#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <utility>
#include <vector>

// The schema's fields: their names, their values as text, and what somebody may have meant who got one wrong.
namespace muster::config {

// "training" and "epochs" -> "training.epochs"; "" and "seed" -> "seed".
std::string join_path(const std::string& prefix, const std::string& name);

// Sets a singular field, or adds to a repeated one, from its text-format form ("3", "\"text\"", "K_FOLD"). Returns what
// is wrong with the value, with `path` as the field's name, or "" when it was taken. Stricter than text format: enums
// by name only, no "not set" enum value, no octal numbers, strings that are text. Scalar fields only.
std::string set_from_text(google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                          const std::string& path, const std::string& value);

// "a whole number from 0 to 4294967295", "true or false", ...
std::string wanted_value(const google::protobuf::FieldDescriptor& field);

// `over` on top of `base`, as MergeFrom, but a repeated field that `over` sets replaces that of `base`.
void merge_over(google::protobuf::Message& base, const google::protobuf::Message& over);

// The dotted paths of all fields that are set, blocks before what is in them.
std::vector<std::string> set_paths(const google::protobuf::Message& message, const std::string& prefix = "");

// Splits the index from a component of a path: "encoders[1]" -> {"encoders", 1}, "seed" -> {"seed", -1}.
std::pair<std::string, int> split_index(const std::string& component);

// Whether the field at a dotted path is set, and in which message; {nullptr, nullptr} when it or a block around it is
// not set. One of several blocks is "encoders[0]"; its field is `encoders` then.
struct FieldAt {
  const google::protobuf::Message* message = nullptr;
  const google::protobuf::FieldDescriptor* field = nullptr;
};
FieldAt find_field(const google::protobuf::Message& message, const std::string& path);

// The candidates that a person who wrote `word` may have meant, best first, at most three: small edit distance (also to
// the initials, so that "lr" finds learning_rate), or one name contains the other. Empty when none is similar.
std::vector<std::string> nearest(const std::string& word, const std::vector<std::string>& candidates);

// "did you mean NAME or NAME? ", or "" when none is similar.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

// "a, b or c".
std::string either(const std::vector<std::string>& names);

// What to say about an unknown field `name` of `message`, whose dotted path is `prefix` ("" for the experiment itself):
// the nearest fields there, the same name elsewhere in the schema, or else all fields of the message.
std::string advice_for_field(const std::string& name, const google::protobuf::Descriptor& message,
                             const std::string& prefix);

}  // namespace muster::config
