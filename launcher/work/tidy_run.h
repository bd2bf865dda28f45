#pragma once

#include <set>
#include <string>

namespace muster::launcher {

// Takes away from the directory of a run that has ended what it needed to go on: all but the files named and, with
// keep_weights, weights/best.safetensors.
void tidy_run(const std::string& run, const std::set<std::string>& kept, bool keep_weights);

}  // namespace muster::launcher
