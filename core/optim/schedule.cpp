#include "core/optim/schedule.h"

#include <cmath>

namespace muster::optim {

double learning_rate(const config::Optimizer& optimizer, uint64_t step, uint64_t total_steps,
                     uint64_t steps_per_epoch) {
  const double peak = optimizer.learning_rate();
  const uint64_t warmup = optimizer.warmup_steps();
  if (step < warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup);
  switch (optimizer.schedule()) {
    case config::Optimizer::COSINE: {
      const uint64_t span = total_steps > warmup + 1 ? total_steps - warmup - 1 : 1;
      const double progress = std::min(1.0, static_cast<double>(step - warmup) / static_cast<double>(span));
      const double low = optimizer.final_lr_ratio();
      return peak * (low + (1 - low) * 0.5 * (1 + std::cos(3.14159265358979323846 * progress)));
    }
    case config::Optimizer::STEP:
      return peak *
             std::pow(optimizer.step_factor(), static_cast<double>(step / steps_per_epoch / optimizer.step_epochs()));
    default:
      return peak;
  }
}

}  // namespace muster::optim
