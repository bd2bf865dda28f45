#pragma once

#include <cstdint>
#include <vector>

namespace muster::metrics {

// scikit-learn's f1_score(average="weighted", zero_division=0) from a square confusion matrix [label][prediction]: F1
// of each class, 0 where it is 0/0, averaged with the class's number of labels as weight. NaN without samples.
double weighted_f1(const std::vector<std::vector<int64_t>>& confusion);

}  // namespace muster::metrics
