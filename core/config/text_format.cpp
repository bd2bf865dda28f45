#include "core/config/text_format.h"

#include <fmt/format.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <system_error>

#include "base/error.h"
#include "base/files.h"
#include "base/utf8.h"
#include "core/config/fields.h"

namespace muster::config {

namespace fs = std::filesystem;
namespace io = google::protobuf::io;

namespace {

constexpr int kDeepestBlock = 20;  // blocks in blocks

using Report = std::function<void(int, const std::string&)>;

[[noreturn]] void fail(const std::string& message) { throw Error(ExitCode::kBadConfig, message); }

constexpr char kWanted[] = "an experiment file is UTF-8 text (Protobuf text format)";

[[noreturn]] void fail_as_too_large(const std::string& path) {
  fail(fmt::format("{} is larger than 1 MiB; {} of a few lines", path, kWanted));
}

std::string similar_files(const fs::path& path) {
  std::vector<std::string> names;
  std::error_code error;
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  fs::directory_iterator files(folder, error);
  if (error) return fmt::format("; the folder {} does not exist or cannot be read", folder.string());
  for (; files != fs::directory_iterator() && names.size() < 1000; files.increment(error)) {
    if (error) break;
    if (files->path().extension() == ".txtpb") names.push_back(files->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  std::vector<std::string> near;
  for (const std::string& name : nearest(path.filename().string(), names))
    near.push_back((path.parent_path() / name).string());
  return near.empty() ? "" : fmt::format("; did you mean {}?", either(near));
}

struct TokenErrors : io::ErrorCollector {
  explicit TokenErrors(const Report& report) : report(report) {}
  void AddError(int line, io::ColumnNumber, const std::string& message) override {
    if (message.find("non ascii") != std::string::npos) {
      if (line == last_foreign) return;  // once for a line, however many there are
      last_foreign = line;
      return report(line + 1,
                    "a character other than ASCII stands outside of quotes. If it is a typographic quote (\xE2\x80\x9C "
                    "\xE2\x80\x9D \xE2\x80\x98 \xE2\x80\x99), type \" or ' instead");
    }
    const bool open_string = message.find("cannot cross line boundaries") != std::string::npos;
    report(line + 1, open_string ? "the quotes that open in this line are not closed in it" : message);
  }
  const Report& report;
  int last_foreign = -1;
};

std::vector<io::Tokenizer::Token> tokens_of(const std::string& text, const Report& report) {
  io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
  TokenErrors errors(report);
  io::Tokenizer tokenizer(&stream, &errors);
  // As TextFormat's parser sets it, except that a string must end in its line: so a forgotten quote is found where it
  // is.
  tokenizer.set_allow_f_after_float(true);
  tokenizer.set_comment_style(io::Tokenizer::SH_COMMENT_STYLE);
  tokenizer.set_require_space_after_number(false);
  tokenizer.set_allow_multiline_strings(false);
  std::vector<io::Tokenizer::Token> tokens;
  while (tokenizer.Next()) tokens.push_back(tokenizer.current());
  tokens.push_back(tokenizer.current());
  return tokens;
}

class Outliner {
 public:
  Outliner(std::vector<io::Tokenizer::Token> tokens, const Report& report)
      : tokens_(std::move(tokens)), report_(report) {}

  std::vector<Statement> file() {
    std::vector<Statement> all;
    while (!at_end()) {
      block_body(all, "", 0);
      if (!at_end()) stray(fmt::format("\"{}\" closes nothing", text()));
    }
    return all;
  }

 private:
  const io::Tokenizer::Token& token(size_t ahead = 0) const {
    return tokens_[std::min(next_ + ahead, tokens_.size() - 1)];
  }
  const std::string& text(size_t ahead = 0) const { return token(ahead).text; }
  bool at_end() const { return token().type == io::Tokenizer::TYPE_END; }
  bool is_name(size_t ahead = 0) const { return token(ahead).type == io::Tokenizer::TYPE_IDENTIFIER; }
  int line() const { return token().line + 1; }
  bool closes_block() const { return text() == "}" || text() == ">"; }
  bool opens_block(size_t ahead = 0) const { return text(ahead) == "{" || text(ahead) == "<"; }
  bool is_string(size_t ahead = 0) const { return token(ahead).type == io::Tokenizer::TYPE_STRING; }

  // One problem for the rest of the line: what follows a mistake on its line is rarely a second one.
  void stray(const std::string& message) {
    report_(line(), message);
    const int bad = token().line;
    do {
      ++next_;
    } while (!at_end() && token().line == bad && !closes_block());
  }

  // Up to the end of the file or the closing brace, which is not taken.
  void block_body(std::vector<Statement>& statements, const std::string& name, int depth) {
    while (!at_end() && !closes_block()) {
      if (is_name()) {
        statement(statements, depth);
      } else {
        stray(fmt::format("expected a field name{}, found {}{}", name.empty() ? "" : " in " + name, text(),
                          is_string() ? " (names are written without quotes)" : ""));
      }
      if (text() == "," || text() == ";") ++next_;
    }
  }

  void statement(std::vector<Statement>& statements, int depth) {
    Statement made;
    made.name = text();
    made.line = line();
    ++next_;
    if (text() == "=") {
      report_(made.line, fmt::format("expected \":\" after {}, found \"=\"", made.name));
    } else if (text() != ":" && !opens_block()) {
      return missing_colon(made);
    }
    if (!opens_block()) ++next_;
    if (opens_block()) made.kind = Statement::Kind::kBlock;
    if (opens_block() ? block(made, depth) : text() == "[" ? list(made, depth) : value(made))
      statements.push_back(std::move(made));
  }

  void missing_colon(const Statement& made) {
    if (line() == made.line && !at_end() && !closes_block()) {
      stray(fmt::format("expected \":\" or \"{{\" after {}, found {}", made.name, text()));
    } else {
      report_(made.line, made.name + " has no value; expected \":\" or \"{\" after it");
    }
  }

  bool block(Statement& made, int depth) {
    const int opened = line();
    if (depth + 1 > kDeepestBlock) {
      report_(opened, fmt::format("blocks are nested more than {} deep", kDeepestBlock));
      next_ = tokens_.size() - 1;
      return false;
    }
    const char* closing = text() == "{" ? "}" : ">";
    ++next_;
    block_body(made.statements, made.name, depth + 1);
    if (at_end()) {
      report_(opened, fmt::format("the block of {} that starts here is never closed with \"{}\"", made.name, closing));
    } else if (text() != closing) {
      stray(fmt::format("expected \"{}\", found \"{}\"", closing, text()));
    } else {
      ++next_;
    }
    return true;
  }

  bool value(Statement& made) {
    const bool is_next_statement = is_name() && line() != made.line && (text(1) == ":" || opens_block(1));
    if (at_end() || closes_block() || is_next_statement) {
      report_(made.line, made.name + " has no value after \":\"");
      return false;
    }
    made.value_lines.push_back(line());
    std::string& written = made.values.emplace_back();
    if (text() == "-") {
      written = "-";
      ++next_;
    }
    if (at_end() || token().type == io::Tokenizer::TYPE_SYMBOL) {
      stray(fmt::format("expected a value for {}, found {}", made.name, at_end() ? "the end of the file" : text()));
      return false;
    }
    written += text();
    while (is_string() && is_string(1) && written[0] != '-') {
      ++next_;
      written += " " + text();
    }
    ++next_;
    return true;
  }

  bool list(Statement& made, int depth) {
    const int opened = line();
    ++next_;
    made.kind = Statement::Kind::kList;
    while (text() != "]") {
      if (opens_block()) made.kind = Statement::Kind::kBlockList;
      if (!(opens_block() ? block(made, depth) : value(made))) return false;
      if (text() == ",") {
        ++next_;
      } else if (text() != "]") {
        const std::string found = at_end() ? "" : fmt::format(": found {} where \",\" or \"]\" was expected", text());
        report_(opened, fmt::format("the list of {} that starts here is not closed with \"]\"{}", made.name, found));
        return false;
      }
    }
    ++next_;
    return true;
  }

  std::vector<io::Tokenizer::Token> tokens_;
  const Report& report_;
  size_t next_ = 0;
};

}  // namespace

std::string read_text_file(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found)
    fail(fmt::format("cannot read {}: no such file{}", path, similar_files(path)));
  if (fs::is_directory(status))
    fail(fmt::format("cannot read {}: it is a folder; name the experiment file in it", path));
  std::string text;
  try {
    text = read_file_or_pipe(path, kLargestFile);
  } catch (const Error& why) {
    if (why.code() == ExitCode::kBadData) fail_as_too_large(path);
    fail(why.what());
  }
  return checked_text(std::move(text), path);
}

std::string checked_text(std::string text, const std::string& path) {
  if (text.size() > kLargestFile) fail_as_too_large(path);
  if (text.rfind("\xEF\xBB\xBF", 0) == 0) text.erase(0, 3);
  if (text.rfind("\xFF\xFE", 0) == 0 || text.rfind("\xFE\xFF", 0) == 0)
    fail(fmt::format("{} is UTF-16; {}", path, kWanted));
  if (text.rfind("\x89HDF\r\n", 0) == 0)
    fail(fmt::format("{0} is an HDF5 file, not an experiment; name it in the experiment: data {{ path: \"{0}\" }}",
                     path));
  if (const size_t bad = first_non_text(text); bad != std::string::npos) {
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(bad), '\n');
    const unsigned byte = static_cast<unsigned char>(text[bad]);
    fail(byte < 0x80 ? fmt::format("{}:{}: holds the control character {:#04x}, so this is not a text file; {}", path,
                                   line, byte, kWanted)
                     : fmt::format("{}:{}: the byte {:#04x} is not UTF-8; {}", path, line, byte, kWanted));
  }
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    fail(path +
         " is empty; an experiment names at least its data and a model, for example\n"
         "  data { synthetic { kind: CLASSIFICATION } }\n  foal_net {}");
  return text;
}

std::map<int, std::string> header_values(const std::string& text, const std::string& key) {
  std::map<int, std::string> values;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const size_t start = line.find_first_not_of(" \t\r");
    if (start == std::string::npos) continue;
    if (line[start] != '#') break;
    const size_t at = line.find(key);
    if (at != std::string::npos) std::istringstream(line.substr(at + key.size())) >> values[number];
  }
  return values;
}

void require_proto_message(const std::string& text, const std::string& path, const std::string& message) {
  for (const auto& [line, named] : header_values(text, "proto-message:"))
    if (named != message)
      fail(fmt::format("{}:{}: the header says that this file is a {}; expected a {}", path, line,
                       named.empty() ? "message without a name" : named, message));
}

std::vector<Statement> outline(const std::string& text, const Report& report) {
  return Outliner(tokens_of(text, report), report).file();
}

}  // namespace muster::config
