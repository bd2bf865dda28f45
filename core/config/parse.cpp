#include "core/config/parse.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include "core/config/outline.h"
#include "core/config/reader.h"
#include "core/models/spec.h"

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

std::vector<std::string> Parsed::given_models() const {
  std::vector<std::string> given;
  for (const std::string& name : models::model_blocks())
    if (const auto block = models.find(name); block != models.end() && models::model_of(block->second) == name)
      given.push_back(name);
  return given;
}

Parsed parse_text(const std::string& text, Problems& problems, bool stored) {
  Parsed parsed;
  parsed.stored = stored;
  bool syntax_is_right = true;
  const std::vector<Statement> statements = outline(text, [&](int line, const std::string& message) {
    syntax_is_right = false;
    problems.at_line(line, message);
  });
  parsed.complete = syntax_is_right;
  const auto place = [&](int line) { return problems.path() + ":" + std::to_string(line); };
  StatementReader(parsed, problems, place).read(statements, parsed.experiment, "");
  if (!problems.empty() || parsed.given_models().size() > 1) return parsed;

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
    for (const std::string& model : parsed.given_models())
      whole.GetReflection()->ClearField(&parsed.experiment, Experiment::descriptor()->FindFieldByName(model));
  }
  return parsed;
}

}  // namespace muster::config
