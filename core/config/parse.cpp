#include "core/config/parse.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include "core/config/outline.h"
#include "core/config/reader.h"

namespace muster::config {

namespace pb = google::protobuf;

namespace {

struct FirstError : pb::io::ErrorCollector {
  void AddError(int at, pb::io::ColumnNumber, const std::string& text) override {
    if (message.empty()) line = at + 1, message = text;
  }
  int line = 0;
  std::string message;
};

}  // namespace

Parsed parse_text(const std::string& text, Problems& problems) {
  Parsed parsed;
  bool syntax_is_right = true;
  const std::vector<Statement> statements = outline(text, [&](int line, const std::string& message) {
    syntax_is_right = false;
    problems.at_line(line, message);
  });
  parsed.complete = syntax_is_right;
  const auto place = [&](int line) { return problems.path() + ":" + std::to_string(line); };
  StatementReader(parsed, problems, place).read(statements, parsed.experiment, "");
  if (!problems.empty()) return parsed;

  // Protobuf's own parser has the last word on what is valid text format.
  Experiment whole;
  FirstError error;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(text, &whole)) {
    problems.at_line(error.line, error.message);
    parsed.complete = false;
  } else {
    parsed.experiment = whole;
  }
  return parsed;
}

}  // namespace muster::config
