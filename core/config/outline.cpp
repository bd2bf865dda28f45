#include "core/config/outline.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>

namespace muster::config {

namespace io = google::protobuf::io;

namespace {

constexpr int kDeepest = 20;

using Report = std::function<void(int, const std::string&)>;

struct TokenErrors : io::ErrorCollector {
  explicit TokenErrors(const Report& report) : report(report) {}
  void AddError(int line, io::ColumnNumber, const std::string& message) override {
    const bool open_string = message.find("cannot cross line boundaries") != std::string::npos;
    report(line + 1, open_string ? "the quotes that open in this line are not closed in it" : message);
  }
  const Report& report;
};

std::vector<io::Tokenizer::Token> tokens_of(const std::string& text, const Report& report) {
  io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
  TokenErrors errors(report);
  io::Tokenizer tokenizer(&stream, &errors);
  // As TextFormat's parser sets it, but for strings over several lines: without them a forgotten quote is found where
  // it is.
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
      if (!at_end()) {
        stray("\"" + text() + "\" closes nothing");
      }
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
  bool closes_block(size_t ahead = 0) const { return text(ahead) == "}" || text(ahead) == ">"; }
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

  // Up to the end of the file or the closing brace, which stays.
  void block_body(std::vector<Statement>& statements, const std::string& name, int depth) {
    while (!at_end() && !closes_block()) {
      if (is_name()) {
        statement(statements, depth);
      } else {
        const std::string inside = name.empty() ? "" : " in " + name;
        stray("expected a field name" + inside + ", found " + text() +
              (is_string() ? " (names are written without quotes)" : ""));
      }
      if (text() == "," || text() == ";") ++next_;
    }
  }

  void statement(std::vector<Statement>& statements, int depth) {
    Statement made;
    made.name = text();
    made.line = line();
    ++next_;
    if (opens_block()) {
      made.kind = Statement::Kind::kBlock;
      if (block(made, depth)) statements.push_back(std::move(made));
      return;
    }
    if (text() == "=") {
      report_(made.line, "expected \":\" after " + made.name + ", found \"=\"");
    } else if (text() != ":") {
      return missing_colon(made);
    }
    ++next_;
    if (opens_block()) {
      made.kind = Statement::Kind::kBlock;
      if (block(made, depth)) statements.push_back(std::move(made));
    } else if (text() == "[") {
      if (list(made, depth)) statements.push_back(std::move(made));
    } else if (value(made)) {
      statements.push_back(std::move(made));
    }
  }

  void missing_colon(const Statement& made) {
    const bool same_line = line() == made.line;
    if (same_line && !at_end() && !closes_block()) {
      stray("expected \":\" or \"{\" after " + made.name + ", found " + text());
    } else {
      report_(made.line, made.name + " has no value; expected \":\" or \"{\" after it");
    }
  }

  bool block(Statement& made, int depth) {
    const int opened = line();
    if (depth + 1 > kDeepest) {
      report_(opened, "blocks are nested more than " + std::to_string(kDeepest) + " deep");
      next_ = tokens_.size() - 1;
      return false;
    }
    const std::string closing = text() == "{" ? "}" : ">";
    ++next_;
    block_body(made.statements, made.name, depth + 1);
    if (at_end()) {
      report_(opened, "the block of " + made.name + " that starts here is never closed with \"" + closing + "\"");
    } else if (text() != closing) {
      stray("expected \"" + closing + "\", found \"" + text() + "\"");
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
    const int start = line();
    std::string written;
    if (text() == "-") {
      written = "-";
      ++next_;
    }
    if (at_end() || token().type == io::Tokenizer::TYPE_SYMBOL) {
      stray("expected a value for " + made.name + (at_end() ? ", found the end of the file" : ", found " + text()));
      return false;
    }
    if (is_string() && written.empty()) {
      written = text();
      while (is_string(1)) {
        ++next_;
        written += " " + text();
      }
    } else {
      written += text();
    }
    ++next_;
    made.values.push_back(written);
    made.value_lines.push_back(start);
    return true;
  }

  bool list(Statement& made, int depth) {
    const int opened = line();
    ++next_;
    made.kind = Statement::Kind::kList;
    while (text() != "]") {
      if (opens_block()) {
        made.kind = Statement::Kind::kBlockList;
        if (!block(made, depth)) return false;
      } else if (!value(made)) {
        return false;
      }
      if (text() == ",") {
        ++next_;
      } else if (text() != "]") {
        report_(opened, "the list of " + made.name + " that starts here is not closed with \"]\"" +
                            (at_end() ? "" : ": found " + text() + " where \",\" or \"]\" was expected"));
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

std::vector<Statement> outline(const std::string& text, const Report& report) {
  return Outliner(tokens_of(text, report), report).file();
}

}  // namespace muster::config
