#pragma once

#include <string>
#include <vector>

#include "core/metrics/metrics.h"

namespace muster::launcher {

// The metrics over the samples of several predictions-test.csv together, as docs/metrics.md defines them: of a
// cross-validation, every sample predicted once, by the model that had not seen it. Throws Error(kBadData), naming file
// and sample, when a file cannot be understood, lacks labels or holds a sample of another one.
metrics::Metrics pooled_metrics(const std::vector<std::string>& files);

}  // namespace muster::launcher
