#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

// Files in Protobuf's text format, before anything is known about the meaning of their fields.
namespace muster::config {

constexpr size_t kLargestFile = 1 << 20;  // bytes

// The bytes of an experiment file as UTF-8 text without byte order mark. Throws Error(kBadConfig) that says what the
// file is instead: missing (with similar names beside it), a folder, unreadable, empty, too large, binary, another
// encoding.
std::string read_text_file(const std::string& path);

// The same checks for text that has been read already; `path` is for messages.
std::string checked_text(std::string text, const std::string& path);

// The first word after each `key` among the comments at the top, by line number from 1: for "proto-message:", the lines
// "# proto-message: muster.config.Experiment".
std::map<int, std::string> header_values(const std::string& text, const std::string& key);

// Throws Error(kBadConfig) if a `# proto-message:` line among the comments at the top names another message than
// `message`.
void require_proto_message(const std::string& text, const std::string& path, const std::string& message);

// One `name: value` or `name { ... }` of a text-format file.
struct Statement {
  enum class Kind { kValue, kList, kBlock, kBlockList };
  std::string name;
  int line = 0;  // of the name, from 1
  Kind kind = Kind::kValue;
  // kValue: one text, as it stands in the file (quotes included; adjacent strings joined by a space). kList: one per
  // element. value_lines has the line of each.
  std::vector<std::string> values;
  std::vector<int> value_lines;
  std::vector<Statement> statements;  // kBlock, kBlockList (all blocks' statements)
};

// Splits text format into statements, with Protobuf's own tokenizer. Protobuf's parser stops at the first error; this
// continues after a mistake and passes each to `report` with its line, from 1. Never throws.
std::vector<Statement> outline(const std::string& text, const std::function<void(int, const std::string&)>& report);

}  // namespace muster::config
