#pragma once

#include <string>
#include <vector>

namespace muster::launcher {

// A table for people, in whatever form: cells are plain UTF-8 text.
struct Table {
  std::string caption;
  std::vector<std::string> warnings;  // above it, and loud
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // as wide as the header
  std::vector<std::string> notes;              // below it
};

std::string as_text(const Table& table);
std::string as_markdown(const Table& table);
// A `table` environment with booktabs' rules.
std::string as_latex(const Table& table);

}  // namespace muster::launcher
