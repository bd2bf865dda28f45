#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace muster::losses {

// How the work of one batch-wide loss is shared out. A loss never sees ranks: it computes the part it is told to and
// hands the result to `gather`. The default is one part that does everything.
struct Partition {
  int64_t parts = 1;
  int64_t part = 0;
  // Concatenates what all parts computed, in order of parts: `own` is [counts[part], ...]. Every part must call it,
  // equally often. Not called when parts == 1.
  std::function<at::Tensor(const at::Tensor& own, const std::vector<int64_t>& counts)> gather;
  // Rows of the global batch whose gradient the caller will use: [gradient_begin, gradient_end). Gradients of other
  // rows may be left 0. gradient_end < 0: all rows.
  int64_t gradient_begin = 0;
  int64_t gradient_end = -1;
};

}  // namespace muster::losses
