#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/problems.h"
#include "core/config/experiment.pb.h"

namespace muster::config {

// What was understood of an experiment file and its overrides. The rest is in a Problems.
struct Parsed {
  Experiment experiment;                     // without a model
  std::map<std::string, Experiment> models;  // per model block that was given: it alone. Until all is read there may be
                                             // several, which one Experiment cannot hold
  std::map<std::string, std::string> origins;  // as LoadedExperiment::origins
  std::set<std::string> unusable;              // paths that were given a value of the wrong type
  bool stored = false;                         // muster wrote the file itself (stored.h)
  bool complete = true;                        // false: some of it was not understood and is missing from `experiment`

  // Where the outermost field `field` belongs.
  Experiment& home(const google::protobuf::FieldDescriptor& field) {
    return field.real_containing_oneof() == nullptr ? experiment : models[field.name()];
  }
  // The model blocks that were given, in the order of the schema.
  std::vector<std::string> given_models() const;
};

// Reads text format into `message`, by its schema, and continues after each mistake. `parsed` records where each value
// came from and what could not be taken.
void parse_message(const std::string& text, google::protobuf::Message& message, Parsed& parsed, Problems& problems);

// Reads the text of an experiment file in the same way.
Parsed parse_text(const std::string& text, Problems& problems, bool stored = false);

// Applies "path=value" to what was read so far.
void apply_override(const std::string& override_text, Parsed& parsed, Problems& problems);

}  // namespace muster::config
