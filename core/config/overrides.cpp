#include <algorithm>
#include <iterator>

#include "base/text.h"
#include "base/utf8.h"
#include "core/config/fields.h"
#include "core/config/outline.h"
#include "core/config/parse.h"
#include "core/config/reader.h"
#include "core/config/suggest.h"

namespace muster::config {

namespace pb = google::protobuf;
using Field = pb::FieldDescriptor;

namespace {

bool in_quotes(const std::string& text) {
  return text.size() >= 2 && (text[0] == '"' || text[0] == '\'') && text.back() == text[0];
}

// Splits at commas outside quotes; the brackets of a text-format list may be there.
std::vector<std::string> list_elements(std::string text) {
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') text = trimmed(text.substr(1, text.size() - 2));
  std::vector<std::string> elements;
  if (text.empty()) return elements;
  char quote = 0;
  std::string element;
  for (const char c : text) {
    if (quote == 0 && c == ',') {
      elements.push_back(trimmed(element));
      element.clear();
      continue;
    }
    if (quote == 0 && (c == '"' || c == '\''))
      quote = c;
    else if (c == quote)
      quote = 0;
    element += c;
  }
  elements.push_back(trimmed(element));
  return elements;
}

void forget(Parsed& parsed, const std::string& path) {
  const auto belongs = [&](const std::string& other) {
    return other == path || other.rfind(path + ".", 0) == 0 || other.rfind(path + "[", 0) == 0;
  };
  for (auto it = parsed.origins.begin(); it != parsed.origins.end();) {
    it = belongs(it->first) ? parsed.origins.erase(it) : std::next(it);
  }
  for (auto it = parsed.unusable.begin(); it != parsed.unusable.end();) {
    it = belongs(*it) ? parsed.unusable.erase(it) : std::next(it);
  }
}

class Override {
 public:
  Override(Parsed& parsed, Problems& problems, std::string place)
      : parsed_(parsed), problems_(problems), place_(std::move(place)) {}

  void apply(const std::string& path, const std::string& value) {
    std::vector<const Field*> fields;
    if (!resolve(path, fields)) return;
    forget(parsed_, path);
    const Field& field = *fields.back();
    const bool removes = value.empty() && (field.is_repeated() || field.message_type() != nullptr);
    Experiment& home = parsed_.home(*fields.front());
    if (removes && find_field(home, path).field == nullptr) return;
    pb::Message* message = &home;
    std::string block;
    for (size_t i = 0; i + 1 < fields.size(); ++i) {
      block = join_path(block, fields[i]->name());
      parsed_.origins.emplace(block, place_);
      message = message->GetReflection()->MutableMessage(message, fields[i]);
    }
    message->GetReflection()->ClearField(message, &field);
    if (removes) return;
    parsed_.origins[path] = place_;
    if (field.message_type() != nullptr) {
      set_block(*message, field, path, value);
    } else if (field.is_repeated()) {
      const std::vector<std::string> elements = list_elements(value);
      for (size_t i = 0; i < elements.size(); ++i) {
        parsed_.origins[path + "[" + std::to_string(i) + "]"] = place_;
        set_value(*message, field, path, elements[i]);
      }
    } else {
      set_value(*message, field, path, value);
    }
  }

 private:
  // The fields along a dotted path; false, with a problem, when the schema has no such path.
  bool resolve(const std::string& path, std::vector<const Field*>& fields) {
    const pb::Descriptor* type = Experiment::descriptor();
    std::string prefix;
    for (size_t start = 0; start <= path.size();) {
      const size_t end = std::min(path.find('.', start), path.size());
      const std::string name = path.substr(start, end - start);
      if (type == nullptr) {
        problems_.at(place_, prefix + " is a single value and has no field " + name);
        return false;
      }
      const Field* field = type->FindFieldByName(name);
      if (field == nullptr) {
        problems_.at(place_, "unknown field " + join_path(prefix, name) + "; " + advice_for_field(name, *type, prefix));
        parsed_.complete = false;
        return false;
      }
      fields.push_back(field);
      type = field->message_type();
      prefix = join_path(prefix, name);
      start = end + 1;
    }
    return true;
  }

  void set_value(pb::Message& message, const Field& field, const std::string& path, const std::string& value) {
    std::string problem;
    if (field.cpp_type() == Field::CPPTYPE_STRING && !in_quotes(value)) {
      if (field.is_repeated())
        message.GetReflection()->AddString(&message, &field, value);
      else
        message.GetReflection()->SetString(&message, &field, value);
    } else if (value.empty()) {
      problem = path + " wants " + wanted_value(field) + ", and nothing stands after \"=\"";
    } else {
      problem = set_from_text(message, field, path, value);
    }
    if (problem.empty()) return;
    problems_.at(place_, problem);
    parsed_.unusable.insert(path);
  }

  void set_block(pb::Message& message, const Field& field, const std::string& path, const std::string& value) {
    if (value.front() != '{' || value.back() != '}') {
      problems_.at(place_, path + " is a block; set a field in it, as " + path + "." +
                               field.message_type()->field(0)->name() + "=..., or write " + path + "={...}");
      parsed_.complete = false;
      return;
    }
    bool syntax_is_right = true;
    const auto report = [&](int, const std::string& text) {
      problems_.at(place_, text);
      syntax_is_right = false;
    };
    // The value is parsed as the block's inside, where a stray brace is a syntax error rather than a way out.
    const std::vector<Statement> statements = outline(value.substr(1, value.size() - 2), report);
    parsed_.complete = parsed_.complete && syntax_is_right;
    const auto same_place = [this](int) { return place_; };
    StatementReader(parsed_, problems_, same_place)
        .read(statements, *message.GetReflection()->MutableMessage(&message, &field), path);
  }

  Parsed& parsed_;
  Problems& problems_;
  std::string place_;
};

}  // namespace

void apply_override(const std::string& text, Parsed& parsed, Problems& problems) {
  if (first_non_text(text) != std::string::npos) {
    problems.at("--set", "one of them holds bytes that are not UTF-8 text");
    parsed.complete = false;
    return;
  }
  const std::string place = "--set " + (text.size() <= 200 ? text : text.substr(0, text.find('=')) + "=...");
  const size_t equals = text.find('=');
  if (equals == std::string::npos) {
    problems.at(place, "expected path=value, for example --set training.epochs=3");
    parsed.complete = false;
    return;
  }
  Override(parsed, problems, place).apply(trimmed(text.substr(0, equals)), trimmed(text.substr(equals + 1)));
}

}  // namespace muster::config
