#pragma once

#include <string>

#include "launcher/slurm/site.pb.h"

namespace muster::launcher {

// The profile of a site: `name_or_file` is a file (it has a slash or ends in .txtpb), or NAME for
// ~/.config/muster/NAME.txtpb. Empty: what MUSTER_SITE says (a path with a slash, or NAME), else
// ~/.config/muster/site.txtpb if there is one, else nothing. Throws Error(kUsage) when a name has no file,
// Error(kBadConfig) that names all problems of a file with their lines.
Site load_site(const std::string& name_or_file);

}  // namespace muster::launcher
