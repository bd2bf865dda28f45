#pragma once

#include <cstddef>

namespace muster::metrics {

// The sum of values[0..count) in the order of numpy's float64 reduction (blocks of 128 in eight lanes, then a binary
// tree), so that means are numpy's to the last bit. Its rounding error grows with log(count), not with count.
double pairwise_sum(const double* values, std::size_t count);

}  // namespace muster::metrics
