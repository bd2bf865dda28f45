#include "launcher/work/spec_file.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <filesystem>
#include <memory>
#include <string_view>

#include "base/error.h"
#include "core/config/fields.h"
#include "core/config/text_format.h"

namespace muster::launcher {

namespace fs = std::filesystem;

SpecFile::SpecFile(const std::string& path, google::protobuf::Message& message)
    : path_(path), message_(message), problems_(path) {
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

std::string SpecFile::default_name() const { return fs::path(path_).stem().string(); }

std::string SpecFile::absolute(const std::string& path) const {
  return fs::absolute(fs::path(path_).parent_path() / path).lexically_normal().string();
}

void SpecFile::read_base(std::string& base, const google::protobuf::RepeatedPtrField<std::string>& set) {
  set_ = {set.begin(), set.end()};
  if (base.empty()) {
    problem("base", "base is missing: the experiment file that is varied, e.g. base: \"../quickstart.txtpb\"");
    return;
  }
  base = base_path_ = absolute(base);
  try {
    varied({});
    base_is_good_ = true;
  } catch (const Error& error) {
    problem("base", error.what());
    return;
  }
  // Together first: one may make room for another (data.synthetic for data.path).
  const std::string of_all = refusal(set_);
  if (of_all.empty()) {
    base_ = varied(set_);
    return;
  }
  bool is_explained = false;
  for (size_t i = 0; i < set_.size(); ++i)
    if (const std::string why = refusal({set_[i]}); !why.empty()) {
      problem(fmt::format("set[{}]", i), why);
      is_explained = true;
    }
  if (!is_explained) problem(fmt::format("set[{}]", set_.size() - 1), of_all);
}

std::vector<std::string> SpecFile::after_set(std::vector<std::string> more) const {
  more.insert(more.begin(), set_.begin(), set_.end());
  return more;
}

void SpecFile::require_at_least(const std::string& field, uint32_t least) {
  const auto [message, found] = config::find_field(message_, field);
  if (found && message->GetReflection()->GetUInt32(*message, found) < least)
    problem(field, fmt::format("{} must be at least {}", field, least));
}

void SpecFile::require_folds(const std::string& field, uint32_t folds) {
  const auto& split = base_.data().split();
  if (folds == 0) return;
  if (split.kind() == config::Split::FIXED)
    problem(field, field + " needs a base experiment with folds: data.split.kind LEAVE_ONE_GROUP_OUT or K_FOLD");
  if (split.kind() == config::Split::K_FOLD && folds > split.folds())
    problem(field, fmt::format("the base experiment has {} folds (data.split.folds)", split.folds()));
  if (!split.test_group().empty())
    problem(field, "the base experiment names its test group (data.split.test_group), which leaves no fold to choose");
}

void SpecFile::resolve_paths(google::protobuf::RepeatedPtrField<std::string>& overrides) const {
  for (auto& text : overrides) {
    const std::string path = path_of_override(text);
    if (names_a_file(path) && text.size() > path.size() + 1)
      text = fmt::format("{}={}", path, absolute(text.substr(path.size() + 1)));
  }
}

std::string SpecFile::refusal(const std::vector<std::string>& overrides) const {
  try {
    const std::string data = varied(overrides).data().path();
    const bool names_data = std::any_of(overrides.begin(), overrides.end(),
                                        [](const std::string& text) { return path_of_override(text) == "data.path"; });
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

bool names_a_file(const std::string& path) {
  const bool of_encoder = path.rfind("encoders[", 0) == 0 && path.find("].path") + 6 == path.size();
  return path == "data.path" || of_encoder;
}

std::string path_of_override(const std::string& text) { return text.substr(0, text.find('=')); }

bool is_of_process(const std::string& path) {
  for (const char* own :
       {"training.threads", "training.device", "training.share_device", "training.reproducible", "training.tf32"})
    if (path == own) return true;
  return path.rfind("checkpoints.", 0) == 0 || path.rfind("deadlines.", 0) == 0;
}

void set_missing(google::protobuf::Message& message, const std::string& defaults) {
  const std::unique_ptr<google::protobuf::Message> whole(message.New());
  google::protobuf::TextFormat::ParseFromString(defaults, whole.get());
  whole->MergeFrom(message);
  message.CopyFrom(*whole);
}

std::string spec_text(const google::protobuf::Message& message, const std::string& proto_file) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string body;
  printer.PrintToString(message, &body);
  return fmt::format("# proto-file: {}\n# proto-message: {}\n{}", proto_file, message.GetDescriptor()->full_name(),
                     body);
}

}  // namespace muster::launcher
