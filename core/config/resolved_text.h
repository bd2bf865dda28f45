#pragma once

#include <string>

#include "core/config/experiment.pb.h"

namespace muster::config {

// The experiment in text format, with the header lines `# proto-file:`, `# proto-message:` and
// `# muster-results-version:` (stored.h): the content of a run directory's config.txtpb. Deterministic: equal
// experiments give equal bytes. Doubles are the shortest text that reads back exactly.
std::string resolved_text(const Experiment& experiment);

// The value alone, as it stands after "name: ". `index` is the element of a repeated field, -1 for a singular one.
std::string value_text(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                       int index);

}  // namespace muster::config
