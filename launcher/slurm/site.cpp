#include "launcher/slurm/site.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/text.h"
#include "launcher/slurm/this_job.h"
#include "launcher/work/spec_file.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;

std::string profile_of_user(const std::string& name) {
  const std::string own = variable("XDG_CONFIG_HOME");
  return fmt::format("{}/muster/{}.txtpb", own.empty() ? variable("HOME") + "/.config" : own, name);
}

// One that this user may not look for is not there: HOME may be somebody else's.
bool is_file(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

}  // namespace

Site load_site(const std::string& name_or_file) {
  const std::string chosen = name_or_file.empty() ? variable("MUSTER_SITE") : name_or_file;
  // A profile's commands run in every job, and in the working directory somebody else may have put a file. So a plain
  // name is never looked for there.
  const bool is_path = chosen.find('/') != std::string::npos ||
                       fs::path(name_or_file).extension() == ".txtpb";  // as the user has typed it just now
  const std::string path = is_path ? chosen : profile_of_user(chosen.empty() ? "site" : chosen);
  if (chosen.empty() && !is_file(path)) return {};
  if (!is_path && !is_file(path))
    throw Error(ExitCode::kUsage, fmt::format("site profile {}: there is no {}. For a file elsewhere give its path, "
                                              "such as ./{}. Examples to copy are in cluster/sites/",
                                              in_quotes(chosen), path, chosen));
  Site site;
  SpecFile(path, site).throw_if_any();
  return site;
}

}  // namespace muster::launcher
