#include "launcher/study/table.h"

#include <algorithm>
#include <map>

namespace muster::launcher {
namespace {

size_t width_of(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));  // characters, not bytes
}

std::string markdown_cell(const std::string& text) {
  std::string cell;
  for (const char c : text) cell += c == '|' ? "\\|" : std::string(1, c);
  return cell;
}

std::string latex_text(const std::string& text) {
  static const std::map<std::string, std::string> known{{"±", "$\\pm$"},
                                                        {"Δ", "$\\Delta$"},
                                                        {"≥", "$\\ge$"},
                                                        {"−", "$-$"},
                                                        {"_", "\\_"},
                                                        {"%", "\\%"},
                                                        {"&", "\\&"},
                                                        {"#", "\\#"},
                                                        {"$", "\\$"},
                                                        {"{", "\\{"},
                                                        {"}", "\\}"},
                                                        {"~", "\\textasciitilde{}"},
                                                        {"^", "\\textasciicircum{}"},
                                                        {"\\", "\\textbackslash{}"},
                                                        {"<", "$<$"},
                                                        {">", "$>$"}};
  std::string result;
  for (size_t i = 0; i < text.size();) {
    size_t size = 1;
    while (i + size < text.size() && (text[i + size] & 0xC0) == 0x80) ++size;
    const std::string character = text.substr(i, size);
    const auto found = known.find(character);
    result += found == known.end() ? character : found->second;
    i += size;
  }
  return result;
}

template <class Render>
std::string joined(const std::vector<std::string>& cells, const std::string& between, Render render) {
  std::string text;
  for (size_t i = 0; i < cells.size(); ++i) text += (i ? between : "") + render(cells[i]);
  return text;
}

}  // namespace

std::string as_text(const Table& table) {
  std::vector<size_t> widths;
  for (const auto& name : table.header) widths.push_back(width_of(name));
  for (const auto& row : table.rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  std::string text;
  for (const auto& warning : table.warnings) text += "!!! " + warning + "\n";
  text += table.caption + "\n";
  const auto line = [&](const std::vector<std::string>& row) {
    std::string cells = " ";
    for (size_t i = 0; i < row.size(); ++i) cells += " " + row[i] + std::string(widths[i] - width_of(row[i]) + 1, ' ');
    cells.erase(cells.find_last_not_of(' ') + 1);
    return cells + "\n";
  };
  text += line(table.header);
  for (const auto& row : table.rows) text += line(row);
  for (const auto& note : table.notes) text += note + "\n";
  return text;
}

std::string as_markdown(const Table& table) {
  std::string text;
  for (const auto& warning : table.warnings) text += "> **WARNING: " + warning + "**\n\n";
  text += table.caption + "\n\n| " + joined(table.header, " | ", markdown_cell) + " |\n|" +
          joined(table.header, "", [](const std::string&) { return std::string("---|"); }) + "\n";
  for (const auto& row : table.rows) text += "| " + joined(row, " | ", markdown_cell) + " |\n";
  for (const auto& note : table.notes) text += "\n" + note + "\n";
  return text;
}

std::string as_latex(const Table& table) {
  std::string text = "% needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n";
  for (const auto& warning : table.warnings) text += "\\textbf{WARNING: " + latex_text(warning) + "}\\\\\n";
  text += "\\caption{" + latex_text(table.caption) + "}\n\\begin{tabular}{l" +
          std::string(table.header.size() - 1, 'r') + "}\n\\toprule\n" + joined(table.header, " & ", latex_text) +
          " \\\\\n\\midrule\n";
  for (const auto& row : table.rows) text += joined(row, " & ", latex_text) + " \\\\\n";
  text += "\\bottomrule\n\\end{tabular}\n";
  for (const auto& note : table.notes) text += "\\par\\footnotesize " + latex_text(note) + "\n";
  return text + "\\end{table}\n";
}

}  // namespace muster::launcher
