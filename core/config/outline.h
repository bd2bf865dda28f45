#pragma once

#include <functional>
#include <string>
#include <vector>

namespace muster::config {

// One `name: value` or `name { ... }` of a text-format file, before anything is known about its meaning.
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

// Splits text format into statements, with Protobuf's own tokenizer. Unlike Protobuf's parser, which stops at the first
// error, it goes on after a mistake: each goes to `report` with its line, from 1. Never throws.
std::vector<Statement> outline(const std::string& text, const std::function<void(int, const std::string&)>& report);

}  // namespace muster::config
