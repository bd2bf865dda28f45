#include "core/config/text_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "core/config/suggest.h"

namespace muster::config {

namespace fs = std::filesystem;

namespace {

constexpr size_t kLargest = 1 << 20;

[[noreturn]] void fail(const std::string& message) { throw Error(ExitCode::kBadConfig, message); }

std::string reason(int number) { return std::generic_category().message(number != 0 ? number : EIO); }

std::string similar_files(const fs::path& path) {
  std::vector<std::string> names;
  std::error_code error;
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  fs::directory_iterator files(folder, error);
  if (error) return "; the folder " + folder.string() + " does not exist or cannot be read";
  for (; files != fs::directory_iterator() && names.size() < 1000; files.increment(error)) {
    if (error) break;
    if (files->path().extension() == ".txtpb") names.push_back(files->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  std::vector<std::string> near;
  for (const std::string& name : nearest(path.filename().string(), names)) {
    near.push_back(path.has_parent_path() ? (path.parent_path() / name).string() : name);
  }
  return near.empty() ? "" : "; did you mean " + either(near) + "?";
}

}  // namespace

std::string read_text_file(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) fail("cannot read " + path + ": no such file" + similar_files(path));
  if (fs::is_directory(status)) fail("cannot read " + path + ": it is a folder; name the experiment file in it");
  // Read in one go with a limit, not by the file's size: pipes and /dev/stdin are legal.
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path + ": " + reason(errno));
  std::string text(kLargest + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) fail("cannot read " + path + ": " + reason(errno));
  text.resize(static_cast<size_t>(file.gcount()));
  return checked_text(std::move(text), path);
}

std::string checked_text(std::string text, const std::string& path) {
  const std::string wanted = "; an experiment file is UTF-8 text (Protobuf text format)";
  if (text.size() > kLargest) fail(path + " is larger than 1 MiB" + wanted + " of a few lines");
  if (text.rfind("\xEF\xBB\xBF", 0) == 0) text.erase(0, 3);
  if (text.rfind("\xFF\xFE", 0) == 0 || text.rfind("\xFE\xFF", 0) == 0) fail(path + " is UTF-16" + wanted);
  if (text.rfind("\x89HDF\r\n", 0) == 0) {
    fail(path + " is an HDF5 file, not an experiment; name it in the experiment: data { path: \"" + path + "\" }");
  }
  const size_t bad = first_non_text(text);
  if (bad != std::string::npos) {
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(bad), '\n');
    const unsigned value = static_cast<unsigned char>(text[bad]);
    char byte[8];
    std::snprintf(byte, sizeof byte, "0x%02x", value);
    const std::string place = path + ":" + std::to_string(line) + ": ";
    if (value < 0x80) fail(place + "holds the control character " + byte + ", so this is not a text file" + wanted);
    fail(place + "the byte " + byte + " is not UTF-8" + wanted);
  }
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
    fail(path +
         " is empty; an experiment names at least its data and a model, for example\n"
         "  data { synthetic { kind: CLASSIFICATION } }\n  foal_net {}");
  }
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

}  // namespace muster::config
