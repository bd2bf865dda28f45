#pragma once

#include <cstdint>

#include "core/config/experiment.pb.h"

namespace muster::optim {

// Learning rate of optimizer step `step` (from 0), a pure function: linear warm-up to the peak over the first
// warmup_steps steps (step 0 already gets 1/warmup_steps of it), then constant, half a cosine down to final_lr_ratio *
// peak at the last step, or a reduction by step_factor every step_epochs epochs.
double learning_rate(const config::Optimizer& optimizer, uint64_t step, uint64_t total_steps, uint64_t steps_per_epoch);

}  // namespace muster::optim
