#include "core/config/parse.h"

#include <fmt/format.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <functional>
#include <iterator>

#include "base/text.h"
#include "base/utf8.h"
#include "core/config/fields.h"
#include "core/config/text_format.h"
#include "core/models/spec.h"

namespace muster::config {

namespace pb = google::protobuf;
using Field = pb::FieldDescriptor;

namespace {

struct FirstError : pb::io::ErrorCollector {
  void AddError(int at, pb::io::ColumnNumber, const std::string& text) override {
    if (message.empty()) line = at + 1, message = text;
  }
  int line = 0;
  std::string message;
};

// Gives statements their meaning by the schema: fills a message, and records what it could not take and where each
// value came from.
class StatementReader {
 public:
  // `place` names a line of the text the statements come from, as where() does.
  StatementReader(Parsed& parsed, Problems& problems, std::function<std::string(int line)> place)
      : parsed_(parsed), problems_(problems), place_(std::move(place)) {}

  // Fills `message`, whose dotted path is `prefix`, from text format.
  void read(const std::string& text, pb::Message& message, const std::string& prefix) {
    const auto statements = outline(text, [&](int line, const std::string& what) {
      problems_.at(place_(line), what);
      parsed_.complete = false;
    });
    read(statements, message, prefix);
  }

 private:
  void read(const std::vector<Statement>& statements, pb::Message& message, const std::string& prefix) {
    std::map<std::string, int> seen;
    for (const Statement& statement : statements) {
      const std::string path = join_path(prefix, statement.name), place = place_(statement.line);
      const Field* field = message.GetDescriptor()->FindFieldByName(statement.name);
      if (field == nullptr) {
        problems_.at(
            place, fmt::format("unknown field {}; {}{}", path,
                               advice_for_field(statement.name, *message.GetDescriptor(), prefix),
                               parsed_.stored ? " If a newer muster wrote this file, only that one can read it." : ""));
        parsed_.complete = false;
        continue;
      }
      const auto [first, is_first] = seen.emplace(statement.name, statement.line);
      if (!is_first && !field->is_repeated())
        problems_.at(place, fmt::format("{} is given twice, first in line {}; {}", path, first->second,
                                        field->message_type() != nullptr ? "join the two blocks" : "keep one"));
      if (field->message_type() != nullptr) {
        read_block(statement, message, *field, path);
      } else {
        read_values(statement, message, *field, path);
      }
    }
  }

  void read_block(const Statement& statement, pb::Message& message, const Field& field, const std::string& path) {
    const std::string place = place_(statement.line);
    if (statement.kind != Statement::Kind::kBlock) {
      problems_.at(place, fmt::format("{} is a block; write {} {{ ... }}{}", path, field.name(),
                                      field.is_repeated() ? ", once for each" : ""));
      parsed_.complete = false;
      return;
    }
    const auto& reflection = *message.GetReflection();
    if (field.is_repeated()) {
      const std::string element = fmt::format("{}[{}]", path, reflection.FieldSize(message, &field));
      parsed_.origins.emplace(element, place);
      return read(statement.statements, *reflection.AddMessage(&message, &field), element);
    }
    parsed_.origins.emplace(path, place);
    pb::Message& home = field.real_containing_oneof() == nullptr ? message : parsed_.home(field);
    read(statement.statements, *reflection.MutableMessage(&home, &field), path);
  }

  void read_values(const Statement& statement, pb::Message& message, const Field& field, const std::string& path) {
    const std::string start = place_(statement.line);
    const bool is_block = statement.kind == Statement::Kind::kBlock || statement.kind == Statement::Kind::kBlockList;
    if (is_block || (statement.kind == Statement::Kind::kList && !field.is_repeated())) {
      problems_.at(start, fmt::format("{} wants {}, not a {}", path,
                                      field.is_repeated() ? "a list of values" : wanted_value(field),
                                      is_block ? "block" : "list"));
      parsed_.unusable.insert(path);
      return;
    }
    // The list as a whole keeps the line where it started.
    parsed_.origins.emplace(path, start);
    for (size_t i = 0; i < statement.values.size(); ++i) {
      const std::string place = place_(statement.value_lines[i]);
      if (!field.is_repeated()) {
        if (message.GetReflection()->HasField(message, &field)) return;  // given twice, which was reported
        parsed_.origins[path] = place;
      }
      const std::string problem = set_from_text(message, field, path, statement.values[i]);
      if (!problem.empty()) {
        problems_.at(place, problem);
        parsed_.unusable.insert(path);
      } else if (field.is_repeated()) {
        parsed_.origins[fmt::format("{}[{}]", path, message.GetReflection()->FieldSize(message, &field) - 1)] = place;
      }
    }
  }

  Parsed& parsed_;
  Problems& problems_;
  std::function<std::string(int)> place_;
};

bool is_quoted(const std::string& text) {
  return text.size() >= 2 && (text[0] == '"' || text[0] == '\'') && text.back() == text[0];
}

// Splits at commas outside quotes; the brackets of a text-format list may be there.
std::vector<std::string> list_elements(std::string text) {
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') text = trimmed(text.substr(1, text.size() - 2));
  if (text.empty()) return {};
  std::vector<std::string> elements(1);
  char quote = 0;
  for (const char c : text) {
    if (quote == 0 && c == ',') {
      elements.emplace_back();
      continue;
    }
    if (quote == 0 && (c == '"' || c == '\''))
      quote = c;
    else if (c == quote)
      quote = 0;
    elements.back() += c;
  }
  for (std::string& element : elements) element = trimmed(element);
  return elements;
}

// The origin and the problems of a value that an override replaces.
void forget(Parsed& parsed, const std::string& path) {
  const auto belongs = [&](const std::string& other) {
    return other == path || other.rfind(path + ".", 0) == 0 || other.rfind(path + "[", 0) == 0;
  };
  for (auto it = parsed.origins.begin(); it != parsed.origins.end();)
    it = belongs(it->first) ? parsed.origins.erase(it) : std::next(it);
  for (auto it = parsed.unusable.begin(); it != parsed.unusable.end();)
    it = belongs(*it) ? parsed.unusable.erase(it) : std::next(it);
}

class Override {
 public:
  Override(Parsed& parsed, Problems& problems, std::string place)
      : parsed_(parsed), problems_(problems), place_(std::move(place)) {}

  void apply(const std::string& path, const std::string& value) {
    std::vector<Step> steps;
    if (!resolve(path, steps)) return;
    forget(parsed_, path);
    const Field& field = *steps.back().field;
    const bool removes = value.empty() && (field.is_repeated() || field.message_type() != nullptr);
    Experiment& home = parsed_.home(*steps.front().field);
    if (removes && find_field(home, path).field == nullptr) return;
    pb::Message* message = &home;
    std::string block;
    for (size_t i = 0; i + 1 < steps.size(); ++i) {
      block = join_path(block, steps[i].name);
      message = enter(*message, steps[i], block);
      if (message == nullptr) return;
      parsed_.origins.emplace(block, place_);
    }
    if (field.message_type() != nullptr && field.is_repeated()) {
      if (removes && steps.back().index < 0) return message->GetReflection()->ClearField(message, &field);
      if (removes) return remove_element(*message, field, path, steps.back().index);
      pb::Message* const element = enter(*message, steps.back(), path);
      if (element == nullptr) return;
      element->Clear();
      parsed_.origins[path] = place_;
      return set_block(*element, field, path, value);
    }
    message->GetReflection()->ClearField(message, &field);
    if (removes) return;
    parsed_.origins[path] = place_;
    if (field.message_type() != nullptr) {
      set_block(*message->GetReflection()->MutableMessage(message, &field), field, path, value);
    } else if (field.is_repeated()) {
      const std::vector<std::string> elements = list_elements(value);
      for (size_t i = 0; i < elements.size(); ++i) {
        parsed_.origins[fmt::format("{}[{}]", path, i)] = place_;
        set_value(*message, field, path, elements[i]);
      }
    } else {
      set_value(*message, field, path, value);
    }
  }

 private:
  struct Step {
    std::string name;  // with its index
    const Field* field;
    int index;  // -1: none
  };

  // Takes one of several blocks away; those behind it move up.
  void remove_element(pb::Message& message, const Field& field, const std::string& path, int index) {
    const pb::Reflection& reflection = *message.GetReflection();
    const int last = reflection.FieldSize(message, &field) - 1;
    for (int i = index; i < last; ++i) reflection.SwapElements(&message, &field, i, i + 1);
    reflection.RemoveLast(&message, &field);
    const std::string list = path.substr(0, path.rfind('['));
    std::map<std::string, std::string> moved;
    for (const auto& [place, origin] : parsed_.origins) {
      const auto [name, place_index] = split_index(place.substr(0, place.find(']') + 1));
      if (name != list || place_index < index)
        moved.emplace(place, origin);
      else if (place_index > index)
        moved.emplace(fmt::format("{}[{}]{}", list, place_index - 1, place.substr(place.find(']') + 1)), origin);
    }
    parsed_.origins = std::move(moved);
  }

  // The block within `message`; nullptr, with a problem, where there is no such one. One behind the last is added.
  pb::Message* enter(pb::Message& message, const Step& step, const std::string& path) {
    const pb::Reflection& reflection = *message.GetReflection();
    if (!step.field->is_repeated()) return reflection.MutableMessage(&message, step.field);
    const int size = reflection.FieldSize(message, step.field);
    if (step.index >= 0 && step.index < size)
      return reflection.MutableRepeatedMessage(&message, step.field, step.index);
    if (step.index == size) return reflection.AddMessage(&message, step.field);
    problems_.at(place_, fmt::format("{}: there {} {} {}; name one as {}[0]{}", path, size == 1 ? "is" : "are", size,
                                     step.field->name(), step.field->name(),
                                     size > 1 ? fmt::format(" to {}[{}]", step.field->name(), size - 1) : ""));
    parsed_.complete = false;
    return nullptr;
  }

  // The fields along a dotted path; false, with a problem, when the schema has no such path.
  bool resolve(const std::string& path, std::vector<Step>& steps) {
    const pb::Descriptor* type = Experiment::descriptor();
    std::string prefix;
    for (size_t start = 0; start <= path.size();) {
      const size_t end = std::min(path.find('.', start), path.size());
      const std::string component = path.substr(start, end - start);
      const auto [name, index] = split_index(component);
      if (type == nullptr) {
        problems_.at(place_, fmt::format("{} is a single value and has no field {}", prefix, name));
        return false;
      }
      const Field* field = type->FindFieldByName(name);
      if (field == nullptr) {
        problems_.at(place_, fmt::format("unknown field {}; {}", join_path(prefix, name),
                                         advice_for_field(name, *type, prefix)));
        parsed_.complete = false;
        return false;
      }
      if (index >= 0 && (!field->is_repeated() || field->message_type() == nullptr)) {
        problems_.at(place_, fmt::format("{} has no elements that could be set one by one", join_path(prefix, name)));
        return false;
      }
      steps.push_back({component, field, index});
      type = field->message_type();
      prefix = join_path(prefix, component);
      start = end + 1;
    }
    return true;
  }

  void set_value(pb::Message& message, const Field& field, const std::string& path, const std::string& value) {
    std::string problem;
    if (field.cpp_type() == Field::CPPTYPE_STRING && !is_quoted(value)) {
      if (field.is_repeated())
        message.GetReflection()->AddString(&message, &field, value);
      else
        message.GetReflection()->SetString(&message, &field, value);
    } else if (value.empty()) {
      problem = fmt::format("{} wants {}, and nothing stands after \"=\"", path, wanted_value(field));
    } else {
      problem = set_from_text(message, field, path, value);
    }
    if (problem.empty()) return;
    problems_.at(place_, problem);
    parsed_.unusable.insert(path);
  }

  void set_block(pb::Message& block, const Field& field, const std::string& path, const std::string& value) {
    if (value.front() != '{' || value.back() != '}') {
      problems_.at(place_, fmt::format("{0} is a block; set a field in it, as {0}.{1}=..., or write {0}={{...}}", path,
                                       field.message_type()->field(0)->name()));
      parsed_.complete = false;
      return;
    }
    // The value is parsed as the block's inside, where a stray brace is a syntax error rather than a way out.
    StatementReader(parsed_, problems_, [this](int) {
      return place_;
    }).read(value.substr(1, value.size() - 2), block, path);
  }

  Parsed& parsed_;
  Problems& problems_;
  std::string place_;
};

}  // namespace

std::vector<std::string> Parsed::given_models() const {
  std::vector<std::string> given;
  for (const std::string& name : models::model_blocks())
    if (const auto block = models.find(name); block != models.end() && models::model_of(block->second) == name)
      given.push_back(name);
  return given;
}

void parse_message(const std::string& text, pb::Message& message, Parsed& parsed, Problems& problems) {
  const auto place = [&](int line) { return fmt::format("{}:{}", problems.path(), line); };
  StatementReader(parsed, problems, place).read(text, message, "");
}

Parsed parse_text(const std::string& text, Problems& problems, bool stored) {
  Parsed parsed;
  parsed.stored = stored;
  parse_message(text, parsed.experiment, parsed, problems);
  if (!problems.empty() || parsed.given_models().size() > 1) return parsed;

  // What is valid text format is for Protobuf's own parser to say.
  Experiment whole;
  FirstError error;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(text, &whole)) {
    problems.at_line(error.line, error.message);
    parsed.complete = false;
    return parsed;
  }
  parsed.experiment = whole;
  for (const std::string& model : parsed.given_models())
    whole.GetReflection()->ClearField(&parsed.experiment, Experiment::descriptor()->FindFieldByName(model));
  return parsed;
}

void apply_override(const std::string& text, Parsed& parsed, Problems& problems) {
  if (first_non_text(text) != std::string::npos) {
    problems.at("--set", "one of them holds bytes that are not UTF-8 text");
    parsed.complete = false;
    return;
  }
  const size_t equals = text.find('=');
  const std::string place = "--set " + (text.size() <= 200 ? text : text.substr(0, equals) + "=...");
  if (equals == std::string::npos) {
    problems.at(place, "expected path=value, for example --set training.epochs=3");
    parsed.complete = false;
    return;
  }
  Override(parsed, problems, place).apply(trimmed(text.substr(0, equals)), trimmed(text.substr(equals + 1)));
}

}  // namespace muster::config
