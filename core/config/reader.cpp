#include "core/config/reader.h"

#include <map>

#include "core/config/fields.h"
#include "core/config/suggest.h"

namespace muster::config {

namespace pb = google::protobuf;

void StatementReader::read(const std::vector<Statement>& statements, pb::Message& message, const std::string& prefix) {
  std::map<std::string, int> seen;
  for (const Statement& statement : statements) {
    const std::string path = join_path(prefix, statement.name);
    const Field* field = message.GetDescriptor()->FindFieldByName(statement.name);
    if (field == nullptr) {
      problems_.at(place_(statement.line),
                   "unknown field " + path + "; " + advice_for_field(statement.name, *message.GetDescriptor(), prefix) +
                       (parsed_.stored ? " If a newer muster wrote this file, only that one can read it." : ""));
      parsed_.complete = false;
      continue;
    }
    const auto [first, is_first] = seen.emplace(statement.name, statement.line);
    if (!is_first && !field->is_repeated()) {
      problems_.at(place_(statement.line),
                   path + " is given twice, first in line " + std::to_string(first->second) +
                       (field->message_type() != nullptr ? "; join the two blocks" : "; keep one"));
    }
    if (field->message_type() != nullptr) {
      read_block(statement, message, *field, path);
    } else {
      read_values(statement, message, *field, path);
    }
  }
}

void StatementReader::read_block(const Statement& statement, pb::Message& message, const Field& field,
                                 const std::string& path) {
  if (statement.kind != Statement::Kind::kBlock) {
    problems_.at(place_(statement.line), path + " is a block; write " + field.name() + " { ... }" +
                                             (field.is_repeated() ? ", once for each" : ""));
    parsed_.complete = false;
    return;
  }
  const auto& reflection = *message.GetReflection();
  if (field.is_repeated()) {
    const std::string element = path + "[" + std::to_string(reflection.FieldSize(message, &field)) + "]";
    parsed_.origins.emplace(element, place_(statement.line));
    read(statement.statements, *reflection.AddMessage(&message, &field), element);
    return;
  }
  parsed_.origins.emplace(path, place_(statement.line));
  pb::Message& home = field.real_containing_oneof() == nullptr ? message : parsed_.home(field);
  read(statement.statements, *reflection.MutableMessage(&home, &field), path);
}

void StatementReader::read_values(const Statement& statement, pb::Message& message, const Field& field,
                                  const std::string& path) {
  const bool is_block = statement.kind == Statement::Kind::kBlock || statement.kind == Statement::Kind::kBlockList;
  if (is_block || (statement.kind == Statement::Kind::kList && !field.is_repeated())) {
    problems_.at(place_(statement.line), path + " wants " +
                                             (field.is_repeated() ? "a list of values" : wanted_value(field)) +
                                             ", not a " + (is_block ? "block" : "list"));
    parsed_.unusable.insert(path);
    return;
  }
  // The list as a whole keeps the line where it started.
  parsed_.origins.emplace(path, place_(statement.line));
  for (size_t i = 0; i < statement.values.size(); ++i) {
    const std::string place = place_(statement.value_lines[i]);
    if (!field.is_repeated()) {
      if (message.GetReflection()->HasField(message, &field)) return;  // given twice, which has been said
      parsed_.origins[path] = place;
    }
    const std::string problem = set_from_text(message, field, path, statement.values[i]);
    if (!problem.empty()) {
      problems_.at(place, problem);
      parsed_.unusable.insert(path);
    } else if (field.is_repeated()) {
      const int count = message.GetReflection()->FieldSize(message, &field);
      parsed_.origins[path + "[" + std::to_string(count - 1) + "]"] = place;
    }
  }
}

}  // namespace muster::config
