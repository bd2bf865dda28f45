#pragma once

#include <string>
#include <vector>

#include "core/config/experiment.pb.h"

namespace muster::config {

// Names that `preset:` accepts, sorted.
std::vector<std::string> preset_names();

// The preset as text format, its comments included. Throws Error(kBadConfig) that lists the valid names.
std::string preset_text(const std::string& name);

// defaults.txtpb without the blocks of models other than `model` ("": of all models).
Experiment default_experiment(const std::string& model);

}  // namespace muster::config
