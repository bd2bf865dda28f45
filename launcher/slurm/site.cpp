#include "launcher/slurm/site.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/problems.h"
#include "base/text.h"
#include "core/config/parse.h"
#include "core/config/text_format.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;

std::string folder_of_user() {
  const char *own = std::getenv("XDG_CONFIG_HOME"), *home = std::getenv("HOME");
  return own && *own ? std::string(own) + "/muster" : std::string(home ? home : "") + "/.config/muster";
}

// One that this user may not look for is not there: HOME may be somebody else's.
bool is_file(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

// A profile's commands run in every job, and in the working directory somebody else may have put a file. So a plain name
// is never looked for there.
std::string file_of(const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  const std::string path = fmt::format("{}/{}.txtpb", folder_of_user(), name);
  if (!is_file(path))
    throw Error(ExitCode::kUsage, fmt::format("site profile {}: there is no {}. For a file elsewhere give its path, "
                                              "such as ./{}. Examples to copy are in cluster/sites/",
                                              in_quotes(name), path, name));
  return path;
}

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() > end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

Site parse_site(const std::string& text, const std::string& path) {
  config::require_proto_message(text, path, "muster.launcher.Site");
  Problems problems(path);
  config::Parsed parsed;  // for its bookkeeping
  Site site;
  config::parse_message(text, site, parsed, problems);
  problems.throw_if_any(ExitCode::kBadConfig);
  return site;
}

Site load_site(const std::string& name_or_file) {
  const char* chosen = std::getenv("MUSTER_SITE");
  std::string path = ends_with(name_or_file, ".txtpb") ? name_or_file
                     : !name_or_file.empty()           ? file_of(name_or_file)
                     : chosen && *chosen               ? file_of(chosen)
                                                       : folder_of_user() + "/site.txtpb";
  if (name_or_file.empty() && !(chosen && *chosen) && !is_file(path)) return {};
  return parse_site(config::read_text_file(path), path);
}

}  // namespace muster::launcher
