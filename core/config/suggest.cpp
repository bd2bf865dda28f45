#include "core/config/suggest.h"

#include <algorithm>
#include <cctype>

#include "core/config/experiment.pb.h"

namespace muster::config {

namespace pb = google::protobuf;

namespace {

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
  for (size_t i = 0; i < name.size(); ++i) {
    if (i == 0 || name[i - 1] == '_') letters += name[i];
  }
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
    const pb::FieldDescriptor& field = *message.field(i);
    const std::string path = join_path(prefix, field.name());
    paths.push_back(path);
    if (field.message_type() != nullptr) collect_paths(*field.message_type(), path, paths);
  }
}

std::string last_name(const std::string& path) {
  const size_t dot = path.rfind('.');
  return dot == std::string::npos ? path : path.substr(dot + 1);
}

std::string list(const std::vector<std::string>& names, const std::string& last_separator) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 == names.size() ? last_separator : ", ";
    text += names[i];
  }
  return text;
}

}  // namespace

std::string join_path(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

std::string either(const std::vector<std::string>& names) { return list(names, " or "); }

std::vector<std::string> nearest(const std::string& given, const std::vector<std::string>& candidates) {
  const std::string word = lower(given.substr(0, 64));
  std::vector<std::pair<int, std::string>> near;
  for (const std::string& candidate : candidates) {
    const int rank = rank_of(word, lower(candidate));
    if (rank >= 0) near.emplace_back(rank, candidate);
  }
  std::stable_sort(near.begin(), near.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> names;
  // Something one or two edits away leaves no doubt: names that only share a part would be noise beside it.
  for (const auto& [rank, name] : near) {
    if (names.size() < 3 && (rank < 20 || near.front().first >= 20)) names.push_back(name);
  }
  return names;
}

std::string advice_for_field(const std::string& name, const pb::Descriptor& message, const std::string& prefix) {
  std::vector<std::string> here, paths, elsewhere;
  for (int i = 0; i < message.field_count(); ++i) here.push_back(message.field(i)->name());
  collect_paths(*message.file()->message_type(0), "",
                paths);  // the schema's outermost message stands first in its file
  for (const std::string& path : paths) {
    if (last_name(path) == lower(name) && path != join_path(prefix, last_name(path))) elsewhere.push_back(path);
  }
  std::vector<std::string> meant;
  if (elsewhere.empty()) {
    for (const std::string& near : nearest(name, here)) meant.push_back(join_path(prefix, near));
  } else {
    // The very name exists, in another block. The nearest name of this block stays in the list: it may be meant as
    // well.
    meant.assign(elsewhere.begin(), elsewhere.begin() + std::min<size_t>(3, elsewhere.size()));
    for (const std::string& near : nearest(name, here)) meant.push_back(join_path(prefix, near));
  }
  if (meant.empty()) {
    std::vector<std::string> names;
    for (const std::string& path : paths) names.push_back(last_name(path));
    for (const std::string& near : nearest(name, names)) {
      for (const std::string& path : paths) {
        if (last_name(path) == near && std::find(meant.begin(), meant.end(), path) == meant.end())
          meant.push_back(path);
      }
    }
    if (meant.size() > 3) meant.resize(3);
  }
  const std::string block = !prefix.empty()                        ? prefix
                            : &message == Experiment::descriptor() ? "an experiment"
                                                                   : "this file";
  if (!meant.empty()) return "did you mean " + either(meant) + "?";
  return block + " has " + list(here, " and ");
}

std::vector<std::string> enum_names(const pb::EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) {
    if (type.value(i)->number() != 0) names.push_back(type.value(i)->name());
  }
  return names;
}

std::string advice_for_enum(const std::string& name, const pb::EnumDescriptor& type) {
  const std::vector<std::string> names = enum_names(type);
  const std::vector<std::string> near = nearest(name, names);
  std::string text;
  if (!near.empty()) text = "did you mean " + either(near) + "? ";
  return text + "Valid: " + list(names, ", ");
}

}  // namespace muster::config
