#pragma once

#include <cstdint>

#include "core/kernels/dropout.h"
#include "core/random/philox.h"

namespace muster::models {

// Which pass over which step: what random choices are keyed by.
struct StepContext {
  uint64_t seed = 0;
  uint32_t step = 0;
  bool training = false;  // false: no dropout

  // Key of the model's dropout layer number `layer`.
  kernels::DropoutKey dropout(uint32_t layer) const { return {seed, step, random::kDropout + layer}; }
};

}  // namespace muster::models
