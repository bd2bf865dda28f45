#include "launcher/slurm/site.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "launcher/slurm/this_job.h"
#include "launcher/work/spec_file.h"

namespace muster::launcher {
namespace {

std::string profile_of_user(const std::string& name) {
  const std::string own = variable("XDG_CONFIG_HOME");
  return fmt::format("{}/muster/{}.txtpb", own.empty() ? variable("HOME") + "/.config" : own, name);
}

// One that this user may not look for is not there: HOME may be somebody else's.
bool is_file(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

}  // namespace

Site load_site(const std::string& name_or_file) {
  const std::string chosen = name_or_file.empty() ? variable("MUSTER_SITE") : name_or_file;
  std::string path = chosen;
  if (chosen.empty()) path = profile_of_user("site");
  if (chosen.empty() && !is_file(path)) return {};
  if (path.find('/') == std::string::npos && !is_file(path)) path = profile_of_user(chosen);
  if (!is_file(path) && path != chosen)
    throw Error(ExitCode::kUsage, fmt::format("site profile {}: there is neither a file of that name here nor {}. "
                                              "Examples to copy are in cluster/sites/",
                                              chosen, path));
  Site site;
  SpecFile(path, site).throw_if_any();
  return site;
}

}  // namespace muster::launcher
