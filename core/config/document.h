#pragma once

#include <string>

#include "core/config/experiment.pb.h"
#include "core/config/presets.h"

namespace muster::config {

// A resolved experiment as text format with the schema's documentation above each field, every option of each enum, and
// the metric names that evaluation.select_by takes. Fields that are not set appear as comments. Loading the text as an
// experiment file gives the same resolved experiment.
std::string documented_text(const Experiment& experiment);

}  // namespace muster::config
