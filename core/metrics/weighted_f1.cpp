#include "core/metrics/weighted_f1.h"

#include <cstddef>
#include <limits>

namespace muster::metrics {

double weighted_f1(const std::vector<std::vector<int64_t>>& confusion) {
  const std::size_t classes = confusion.size();
  double sum = 0;
  int64_t samples = 0;
  for (std::size_t c = 0; c < classes; ++c) {
    int64_t labelled = 0;
    int64_t predicted = 0;
    for (std::size_t other = 0; other < classes; ++other) {
      labelled += confusion[c][other];
      predicted += confusion[other][c];
    }
    samples += labelled;
    if (labelled == 0) continue;  // weight 0
    sum += 2.0 * confusion[c][c] / (labelled + predicted) * labelled;
  }
  return samples == 0 ? std::numeric_limits<double>::quiet_NaN() : sum / samples;
}

}  // namespace muster::metrics
