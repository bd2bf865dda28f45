#pragma once

#include <string>

#include "core/config/experiment.pb.h"

// A resolved experiment as text.
namespace muster::config {

// The experiment in text format, with the header lines `# proto-file:`, `# proto-message:` and
// `# muster-results-version:` (stored.h): the content of a run directory's config.txtpb. Deterministic: equal
// experiments give equal bytes. Doubles are the shortest text that reads back exactly.
std::string resolved_text(const Experiment& experiment);

// The same with the schema's documentation above each field, every option of each enum, and the metric names that
// evaluation.select_by takes. Fields that are not set appear as comments. Loading the text as an experiment file gives
// the same resolved experiment.
std::string documented_text(const Experiment& experiment);

// The value at a dotted path, as it stands after "name: "; a list in brackets, "(set)" for a block, `absent` where it
// is not set.
std::string value_text(const Experiment& experiment, const std::string& path, const std::string& absent = "");

}  // namespace muster::config
