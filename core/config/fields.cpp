#include "core/config/fields.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <cctype>
#include <memory>
#include <vector>

#include "base/utf8.h"
#include "core/config/suggest.h"

namespace muster::config {

namespace pb = google::protobuf;
using Field = pb::FieldDescriptor;

namespace {

struct Silent : pb::io::ErrorCollector {
  void AddError(int, pb::io::ColumnNumber, const std::string&) override {}
};

bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }

std::string shortened(const std::string& value) { return value.size() <= 60 ? value : value.substr(0, 57) + "..."; }

std::string enum_problem(const Field& field, const std::string& path, const std::string& value) {
  const pb::EnumDescriptor& type = *field.enum_type();
  const pb::EnumValueDescriptor* found = type.FindValueByName(value);
  if (found != nullptr && found->number() != 0) return "";
  if (pb::io::Tokenizer::IsIdentifier(value)) {
    return path + " has no value " + shortened(value) + "; " + advice_for_enum(value, type);
  }
  std::string inner = value;
  if (inner.size() > 1 && (inner[0] == '"' || inner[0] == '\'')) inner = inner.substr(1, inner.size() - 2);
  return path + " wants a name without quotes, not " + shortened(value) + "; " + advice_for_enum(inner, type);
}

// MergeFrom appends lists.
void clear_replaced_lists(pb::Message& base, const pb::Message& over) {
  const pb::Reflection& reflection = *over.GetReflection();
  std::vector<const Field*> set;
  reflection.ListFields(over, &set);
  for (const Field* field : set) {
    if (field->is_repeated()) {
      reflection.ClearField(&base, field);
    } else if (field->message_type() != nullptr && reflection.HasField(base, field)) {
      clear_replaced_lists(*reflection.MutableMessage(&base, field), reflection.GetMessage(over, field));
    }
  }
}

}  // namespace

std::string wanted_value(const Field& field) {
  switch (field.cpp_type()) {
    case Field::CPPTYPE_UINT32:
      return "a whole number from 0 to 4294967295";
    case Field::CPPTYPE_UINT64:
      return "a whole number from 0 to 18446744073709551615";
    case Field::CPPTYPE_DOUBLE:
      return "a number";
    case Field::CPPTYPE_BOOL:
      return "true or false";
    case Field::CPPTYPE_STRING:
      return "text in quotes";
    case Field::CPPTYPE_ENUM:
      return "one of " + either(enum_names(*field.enum_type()));
    default:
      return "another kind of value";
  }
}

std::string set_from_text(pb::Message& message, const Field& field, const std::string& path, const std::string& value) {
  if (field.enum_type() != nullptr) {
    std::string problem = enum_problem(field, path, value);
    if (!problem.empty()) return problem;
  }
  const bool whole = field.cpp_type() == Field::CPPTYPE_UINT32 || field.cpp_type() == Field::CPPTYPE_UINT64;
  if (whole && value.size() > 1 && value[0] == '0' && is_digit(value[1])) {
    return path + " wants " + wanted_value(field) + "; " + shortened(value) +
           " starts with 0, which text format reads as octal";
  }
  const std::unique_ptr<pb::Message> scratch(message.New());
  Silent silent;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&silent);
  if (!parser.ParseFieldValueFromString(value, &field, scratch.get())) {
    return path + " wants " + wanted_value(field) + ", not " + shortened(value);
  }
  if (field.cpp_type() == Field::CPPTYPE_STRING) {
    const pb::Reflection& reflection = *scratch->GetReflection();
    const std::string text = field.is_repeated() ? reflection.GetRepeatedString(*scratch, &field, 0)
                                                 : reflection.GetString(*scratch, &field);
    if (first_non_text(text) != std::string::npos) {
      return path + " holds bytes that are not UTF-8 text: " + shortened(value);
    }
  }
  message.MergeFrom(*scratch);
  return "";
}

void merge_over(pb::Message& base, const pb::Message& over) {
  clear_replaced_lists(base, over);
  base.MergeFrom(over);
}

void for_each_set_field(const pb::Message& message, const Visit& visit, const std::string& prefix) {
  std::vector<const Field*> set;
  message.GetReflection()->ListFields(message, &set);
  for (const Field* field : set) {
    const std::string path = join_path(prefix, field->name());
    visit(path, message, *field);
    if (field->message_type() != nullptr && !field->is_repeated()) {
      for_each_set_field(message.GetReflection()->GetMessage(message, field), visit, path);
    }
  }
}

FieldAt find_field(const pb::Message& message, const std::string& path) {
  const size_t dot = path.find('.');
  const Field* field = message.GetDescriptor()->FindFieldByName(path.substr(0, dot));
  if (field == nullptr) return {};
  const pb::Reflection& reflection = *message.GetReflection();
  if (field->is_repeated() ? reflection.FieldSize(message, field) == 0 : !reflection.HasField(message, field))
    return {};
  if (dot == std::string::npos) return {&message, field};
  if (field->message_type() == nullptr || field->is_repeated()) return {};
  return find_field(reflection.GetMessage(message, field), path.substr(dot + 1));
}

}  // namespace muster::config
