#pragma once

#include <set>
#include <string>
#include <vector>

#include "core/config/checker.h"

namespace muster::config {

// Adds a problem for every value that no data could make right: ranges, combinations, missing blocks. `loaded` is
// resolved. `unusable` holds paths whose value is already known to be wrong: they and what is compared with them are
// not looked at. `complete` is false when parts of the file were not understood, so that something seemingly missing
// may be among them.
void check_experiment(const LoadedExperiment& loaded, const std::set<std::string>& unusable, bool complete,
                      Problems& problems);

// The part of it that concerns the block of the experiment's model alone.
void check_model(const Checker& check);

// One sentence for each value that was given, differs from its default and has no effect with the other values.
std::vector<std::string> ineffective_settings(const LoadedExperiment& loaded, const Experiment& defaults);

}  // namespace muster::config
