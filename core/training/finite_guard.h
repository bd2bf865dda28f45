#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>

namespace muster::training {

// Keeps steps that became non-finite out of the weights without the host having to wait for the device: the verdict
// stays on the device and tells the optimizer to leave the weights alone, until the host looks.
class FiniteGuard {
 public:
  explicit FiniteGuard(c10::Device device);

  // Judges step `step` by its loss and gradient norm (float64 scalars on the device). Returns a float32 scalar there: 1
  // if this step or any since the last poll() was not finite, so that the weights stay as the first bad step found
  // them; 0 otherwise.
  at::Tensor check(uint64_t step, const at::Tensor& loss, const at::Tensor& norm);

  // The first bad step since the last look, if there was one. Waits for the device.
  std::optional<uint64_t> poll();

 private:
  at::Tensor first_bad_;  // float64 scalar: number of the step, or -1
};

}  // namespace muster::training
