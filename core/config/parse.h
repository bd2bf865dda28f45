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
  Experiment experiment;
  std::map<std::string, std::string> origins;  // as LoadedExperiment::origins
  std::set<std::string> unusable;              // paths that were given a value which is not one
  bool complete = true;                        // false: some of it was not understood and is missing from `experiment`
};

// Reads the text of an experiment file, going on after each mistake.
Parsed parse_text(const std::string& text, Problems& problems);

// Applies "path=value" to what was read so far.
void apply_override(const std::string& override_text, Parsed& parsed, Problems& problems);

}  // namespace muster::config
