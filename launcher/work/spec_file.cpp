#include "launcher/work/spec_file.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <filesystem>
#include <string_view>

#include "base/error.h"
#include "core/config/text_format.h"

namespace muster::launcher {

namespace fs = std::filesystem;

SpecFile::SpecFile(const std::string& path, google::protobuf::Message& message) : path_(path), problems_(path) {
  const std::string text = config::read_text_file(path);
  config::require_proto_message(text, path, message.GetDescriptor()->full_name());
  config::parse_message(text, message, parsed_, problems_);
}

std::string SpecFile::place(const std::string& field) const {
  for (std::string path = field; !path.empty();
       path = path.substr(0, path.rfind('.') == std::string::npos ? 0 : path.rfind('.')))
    if (const auto found = parsed_.origins.find(path); found != parsed_.origins.end()) return found->second;
  return path_ + ":1";
}

void SpecFile::read_base(std::string& base, const std::vector<std::string>& set) {
  if (base.empty()) {
    problem("base", "base is missing: the experiment file that is varied, e.g. base: \"../quickstart.txtpb\"");
    return;
  }
  base_path_ = fs::absolute(fs::path(path_).parent_path() / base).lexically_normal().string();
  base = base_path_;
  try {
    base_ = config::load_experiment(base_path_, {}).experiment;
    base_is_good_ = true;
  } catch (const Error& error) {
    problem("base", error.what());
    return;
  }
  for (size_t i = 0; i < set.size(); ++i)
    if (const std::string why = refusal({set[i]}); !why.empty()) problem(fmt::format("set[{}]", i), why);
}

void SpecFile::resolve_paths(google::protobuf::RepeatedPtrField<std::string>& overrides) const {
  constexpr std::string_view key = "data.path=";
  for (auto& text : overrides)
    if (text.size() > key.size() && text.compare(0, key.size(), key) == 0)
      text = std::string(key) +
             fs::absolute(fs::path(path_).parent_path() / text.substr(key.size())).lexically_normal().string();
}

std::string SpecFile::refusal(const std::vector<std::string>& overrides) const {
  try {
    const std::string data = varied(overrides).data().path();
    const bool names_data = !overrides.empty() && path_of_override(overrides.back()) == "data.path";
    return names_data && !fs::exists(data) ? "there is no file " + data : "";
  } catch (const Error& error) {
    // "PATH: N problems:\n  --set a=b: what is wrong\n ...": the first is enough, the rest follows from it.
    const std::string text = error.what();
    const auto line = text.find('\n');
    std::string first = line == std::string::npos ? text : text.substr(line + 1, text.find('\n', line + 1) - line - 1);
    first.erase(0, first.find_first_not_of(' '));
    if (const std::string own = "--set " + overrides.back() + ": "; first.rfind(own, 0) == 0)
      first.erase(0, own.size());
    return first;
  }
}

std::string path_of_override(const std::string& text) { return text.substr(0, text.find('=')); }

std::string spec_text(const google::protobuf::Message& message, const std::string& proto_file) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string body;
  printer.PrintToString(message, &body);
  return fmt::format("# proto-file: {}\n# proto-message: {}\n{}", proto_file, message.GetDescriptor()->full_name(),
                     body);
}

}  // namespace muster::launcher
