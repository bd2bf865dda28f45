#pragma once

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

namespace muster::config {

// The candidates that a person who wrote `word` may have meant, best first, at most three: small edit distance (also to
// the initials, so that "lr" finds learning_rate), or one name contains the other. Empty when nothing comes near.
std::vector<std::string> nearest(const std::string& word, const std::vector<std::string>& candidates);

// "a, b or c".
std::string either(const std::vector<std::string>& names);

// What to say about an unknown field `name` of `message`, whose dotted path is `prefix` ("" for the experiment itself):
// the nearest fields there, the same name elsewhere in the schema, or else all fields of the message.
std::string advice_for_field(const std::string& name, const google::protobuf::Descriptor& message,
                             const std::string& prefix);

// What to say about a value `name` that `type` does not have: the nearest, and all valid ones.
std::string advice_for_enum(const std::string& name, const google::protobuf::EnumDescriptor& type);

// The enum's names without the one of number 0, which means "not set".
std::vector<std::string> enum_names(const google::protobuf::EnumDescriptor& type);

// "training" and "epochs" -> "training.epochs"; "" and "seed" -> "seed".
std::string join_path(const std::string& prefix, const std::string& name);

}  // namespace muster::config
