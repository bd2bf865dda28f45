#pragma once

#include <set>
#include <string>
#include <vector>

#include "base/problems.h"
#include "core/config/experiment.pb.h"
#include "core/config/load.h"

namespace muster::config {

// Metrics that evaluation.select_by may name.
const std::vector<std::string>& regression_metrics();
const std::vector<std::string>& classification_metrics();

// Adds a problem for every value that no data could make right: ranges, combinations, missing blocks. `loaded` is
// resolved. `unusable` holds paths whose value is already known to be wrong: they and what is compared with them are
// not looked at. `complete` is false when parts of the file were not understood, so that something seemingly missing
// may be among them.
void check_experiment(const LoadedExperiment& loaded, const std::set<std::string>& unusable, bool complete,
                      Problems& problems);

// One sentence for each value that was given, differs from its default and has no effect with the other values.
std::vector<std::string> ineffective_settings(const LoadedExperiment& loaded, const Experiment& defaults);

}  // namespace muster::config
