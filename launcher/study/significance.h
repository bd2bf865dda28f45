#pragma once

#include "launcher/study/results.h"

namespace muster::launcher {

// Every variant against the base, for every metric: [metric][variant - 1]. By SciPy, in a Python process
// (significance.py). Throws Error(kBadConfig) when that cannot run.
std::vector<std::vector<Comparison>> compare_with_base(const StudyResults& results, const Study& study);

}  // namespace muster::launcher
