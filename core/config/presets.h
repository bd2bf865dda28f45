#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace muster::config {

// Names that `preset:` accepts, sorted.
std::vector<std::string> preset_names();

// The preset as text format, its comments included. Throws Error(kBadConfig) that lists the valid names.
std::string preset_text(const std::string& name);

// defaults.txtpb.
std::string_view defaults_text();

}  // namespace muster::config
