#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>

namespace muster::training {

// Keeps steps that became non-finite out of the weights without the host having to wait for the device: the verdict
// stays on the device and tells the optimizer to leave the weights alone, until the host looks.
class FiniteGuard {
 public:
  explicit FiniteGuard(c10::Device device)
      : first_bad_(at::full({}, -1.0, at::TensorOptions(device).dtype(at::kDouble))) {}

  // Judges step `step` by its loss and gradient norm (float64 scalars on the device). Returns a float32 scalar there: 1
  // if this step or any since the last poll() was not finite, so that the weights stay as the first bad step found
  // them; 0 otherwise.
  at::Tensor check(uint64_t step, const at::Tensor& loss, const at::Tensor& norm) {
    const at::Tensor bad = (loss.isfinite() & norm.isfinite()).logical_not() & first_bad_.lt(0);
    first_bad_ = at::where(bad, at::full_like(first_bad_, static_cast<double>(step)), first_bad_);
    return first_bad_.ge(0).to(at::kFloat);
  }

  // The first bad step since the last look, if there was one. Waits for the device.
  std::optional<uint64_t> poll() {
    const double first = first_bad_.item<double>();
    if (first < 0) return std::nullopt;
    first_bad_.fill_(-1.0);
    return static_cast<uint64_t>(first);
  }

 private:
  at::Tensor first_bad_;  // float64 scalar: number of the step, or -1
};

}  // namespace muster::training
