#include "core/config/fields.h"

#include <fmt/format.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <memory>

#include "base/text.h"
#include "base/utf8.h"
#include "core/config/experiment.pb.h"

namespace muster::config {

namespace pb = google::protobuf;
using Field = pb::FieldDescriptor;

namespace {

struct Silent : pb::io::ErrorCollector {
  void AddError(int, pb::io::ColumnNumber, const std::string&) override {}
};

bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }

// Without the one of number 0, which means "not set".
std::vector<std::string> enum_names(const pb::EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i)
    if (type.value(i)->number() != 0) names.push_back(type.value(i)->name());
  return names;
}

std::string enum_problem(const Field& field, const std::string& path, const std::string& value,
                         const std::string& shown) {
  const pb::EnumDescriptor& type = *field.enum_type();
  const pb::EnumValueDescriptor* found = type.FindValueByName(value);
  if (found != nullptr && found->number() != 0) return "";
  const std::vector<std::string> names = enum_names(type);
  const auto advice = [&](const std::string& word) { return did_you_mean(word, names) + "Valid: " + join(names); };
  if (pb::io::Tokenizer::IsIdentifier(value)) return fmt::format("{} has no value {}; {}", path, shown, advice(value));
  const bool quoted = value.size() > 1 && (value[0] == '"' || value[0] == '\'');
  return fmt::format("{} wants a name without quotes, not {}; {}", path, shown,
                     advice(quoted ? value.substr(1, value.size() - 2) : value));
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

// Edits are insertion, deletion, substitution and the swap of two neighbours (optimal string alignment).
int edit_distance(const std::string& a, const std::string& b) {
  std::vector<int> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string initials(const std::string& name) {
  std::string letters;
  for (size_t i = 0; i < name.size(); ++i)
    if (i == 0 || name[i - 1] == '_') letters += name[i];
  return letters;
}

// Smaller is nearer; -1: not near.
int rank_of(const std::string& word, const std::string& candidate) {
  const int distance = edit_distance(word, candidate);
  const int allowed = std::max<int>(1, static_cast<int>(std::max(word.size(), candidate.size())) / 3);
  if (distance <= allowed) return distance;
  if (word.size() > 1 && initials(candidate) == word) return 1;
  if (word.size() >= 4 && candidate.find(word) != std::string::npos) return 20;
  if (candidate.size() >= 4 && word.find(candidate) != std::string::npos) return 21;
  return -1;
}

void collect_paths(const pb::Descriptor& message, const std::string& prefix, std::vector<std::string>& paths) {
  for (int i = 0; i < message.field_count(); ++i) {
    const Field& field = *message.field(i);
    paths.push_back(join_path(prefix, field.name()));
    if (field.message_type() != nullptr) collect_paths(*field.message_type(), std::string(paths.back()), paths);
  }
}

std::string last_name(const std::string& path) { return path.substr(path.rfind('.') + 1); }

std::string list(const std::vector<std::string>& names, const char* last_separator) {
  if (names.size() < 2) return join(names);
  return fmt::format("{}{}{}", fmt::join(names.begin(), names.end() - 1, ", "), last_separator, names.back());
}

}  // namespace

std::string join_path(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

std::string wanted_value(const Field& field) {
  static const std::map<Field::CppType, const char*> wanted{
      {Field::CPPTYPE_UINT32, "a whole number from 0 to 4294967295"},
      {Field::CPPTYPE_UINT64, "a whole number from 0 to 18446744073709551615"},
      {Field::CPPTYPE_DOUBLE, "a number"},
      {Field::CPPTYPE_BOOL, "true or false"},
      {Field::CPPTYPE_STRING, "text in quotes"}};
  if (field.enum_type() != nullptr) return "one of " + either(enum_names(*field.enum_type()));
  const auto found = wanted.find(field.cpp_type());
  return found == wanted.end() ? "another kind of value" : found->second;
}

std::string set_from_text(pb::Message& message, const Field& field, const std::string& path, const std::string& value) {
  const std::string shown = value.size() <= 60 ? value : value.substr(0, 57) + "...";
  if (field.enum_type() != nullptr) {
    std::string problem = enum_problem(field, path, value, shown);
    if (!problem.empty()) return problem;
  }
  const bool whole = field.cpp_type() == Field::CPPTYPE_UINT32 || field.cpp_type() == Field::CPPTYPE_UINT64;
  if (whole && value.size() > 1 && value[0] == '0' && is_digit(value[1]))
    return fmt::format("{} wants {}; {} starts with 0, which text format reads as octal", path, wanted_value(field),
                       shown);
  const std::unique_ptr<pb::Message> scratch(message.New());
  Silent silent;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&silent);
  if (!parser.ParseFieldValueFromString(value, &field, scratch.get()))
    return fmt::format("{} wants {}, not {}", path, wanted_value(field), shown);
  if (field.cpp_type() == Field::CPPTYPE_STRING) {
    const pb::Reflection& reflection = *scratch->GetReflection();
    const std::string text = field.is_repeated() ? reflection.GetRepeatedString(*scratch, &field, 0)
                                                 : reflection.GetString(*scratch, &field);
    if (first_non_text(text) != std::string::npos)
      return fmt::format("{} holds bytes that are not UTF-8 text: {}", path, shown);
  }
  message.MergeFrom(*scratch);
  return "";
}

void merge_over(pb::Message& base, const pb::Message& over) {
  clear_replaced_lists(base, over);
  base.MergeFrom(over);
}

std::vector<std::string> set_paths(const pb::Message& message, const std::string& prefix) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const Field*> set;
  reflection.ListFields(message, &set);
  std::vector<std::string> paths;
  const auto add = [&](const pb::Message& block, const std::string& path) {
    paths.push_back(path);
    const auto inner = set_paths(block, path);
    paths.insert(paths.end(), inner.begin(), inner.end());
  };
  for (const Field* field : set) {
    const std::string path = join_path(prefix, field->name());
    if (field->message_type() == nullptr) {
      paths.push_back(path);
    } else if (!field->is_repeated()) {
      add(reflection.GetMessage(message, field), path);
    } else {
      for (int i = 0; i < reflection.FieldSize(message, field); ++i)
        add(reflection.GetRepeatedMessage(message, field, i), fmt::format("{}[{}]", path, i));
    }
  }
  return paths;
}

std::pair<std::string, int> split_index(const std::string& component) {
  const size_t bracket = component.find('[');
  if (bracket == std::string::npos || component.back() != ']') return {component, -1};
  const auto index = parse_integer(component.substr(bracket + 1, component.size() - bracket - 2));
  if (!index || *index < 0 || *index > 1000) return {component, -1};
  return {component.substr(0, bracket), static_cast<int>(*index)};
}

FieldAt find_field(const pb::Message& message, const std::string& path) {
  const size_t dot = path.find('.');
  const auto [name, index] = split_index(path.substr(0, dot));
  const Field* field = message.GetDescriptor()->FindFieldByName(name);
  if (field == nullptr) return {};
  const pb::Reflection& reflection = *message.GetReflection();
  if (field->is_repeated() ? reflection.FieldSize(message, field) <= std::max(index, 0)
                           : !reflection.HasField(message, field) || index >= 0)
    return {};
  if (dot == std::string::npos) return {&message, field};
  if (field->message_type() == nullptr || field->is_repeated() != (index >= 0)) return {};
  return find_field(
      index < 0 ? reflection.GetMessage(message, field) : reflection.GetRepeatedMessage(message, field, index),
      path.substr(dot + 1));
}

std::vector<std::string> nearest(const std::string& given, const std::vector<std::string>& candidates) {
  const std::string word = lower(given.substr(0, 64));
  std::vector<std::pair<int, std::string>> near;
  for (const std::string& candidate : candidates)
    if (const int rank = rank_of(word, lower(candidate)); rank >= 0) near.emplace_back(rank, candidate);
  std::stable_sort(near.begin(), near.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> names;
  // Something one or two edits away leaves no doubt: names that only share a part would be noise beside it.
  for (const auto& [rank, name] : near)
    if (names.size() < 3 && (rank < 20 || near.front().first >= 20)) names.push_back(name);
  return names;
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  const std::vector<std::string> near = nearest(word, candidates);
  return near.empty() ? "" : fmt::format("did you mean {}? ", either(near));
}

std::string either(const std::vector<std::string>& names) { return list(names, " or "); }

std::string advice_for_field(const std::string& name, const pb::Descriptor& message, const std::string& prefix) {
  std::vector<std::string> here, paths, meant;
  for (int i = 0; i < message.field_count(); ++i) here.push_back(message.field(i)->name());
  collect_paths(*message.file()->message_type(0), "", paths);  // a schema's outermost message is the first of its file
  for (const std::string& path : paths)
    if (meant.size() < 3 && last_name(path) == lower(name) && path != join_path(prefix, last_name(path)))
      meant.push_back(path);
  // Even where another block has the very name, the nearest of this block may be meant.
  for (const std::string& near : nearest(name, here)) meant.push_back(join_path(prefix, near));
  if (meant.empty()) {
    std::vector<std::string> names;
    for (const std::string& path : paths) names.push_back(last_name(path));
    for (const std::string& near : nearest(name, names))
      for (const std::string& path : paths)
        if (last_name(path) == near && std::find(meant.begin(), meant.end(), path) == meant.end())
          meant.push_back(path);
    if (meant.size() > 3) meant.resize(3);
  }
  if (!meant.empty()) return fmt::format("did you mean {}?", either(meant));
  const bool is_experiment = &message == Experiment::descriptor();
  return fmt::format("{} has {}",
                     !prefix.empty() ? prefix
                     : is_experiment ? "an experiment"
                                     : "this file",
                     list(here, " and "));
}

}  // namespace muster::config
