#pragma once

#include <ATen/ATen.h>

#include "core/models/parameters.h"

namespace muster::optim {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
};

// AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), on the flat buffers of a model's parameters: equal,
// element by element, to torch.optim.AdamW(fused=True) with weight_decay on the decayed part and 0 on the rest; to the
// bit, but for the last few elements of a parameter whose size is no multiple of PyTorch's vectors. Unlike PyTorch's it
// also decays parameters that got no gradient in a step.
class AdamW {
 public:
  AdamW(models::Parameters& parameters, const AdamWOptions& options);

  // The state, to be saved and restored by writing into it: flat, as parameters.values(), and the updates made so far
  // (float32 scalar).
  at::Tensor first_moment() const { return first_moment_; }
  at::Tensor second_moment() const { return second_moment_; }
  at::Tensor steps() const { return steps_; }

  // One update from parameters.gradients(). skip: undefined, or a float32 scalar on the parameters' device: where it is
  // 1, nothing changes.
  void step(double learning_rate, const at::Tensor& skip = {});

 private:
  models::Parameters& parameters_;
  AdamWOptions options_;
  at::Tensor first_moment_;
  at::Tensor second_moment_;
  at::Tensor steps_;
};

// L2 norm of a flat float32 or float64 tensor, accumulated in float64 over fixed blocks: a float32 sum of 14 million
// squares is wrong in the fourth digit, and the result must not depend on the number of threads. NaN or infinite
// elements give a non-finite norm. Returns a float64 scalar on the tensor's device.
at::Tensor l2_norm(const at::Tensor& flat);

// Scales the gradients so that their L2 norm, which the caller has computed (a float64 scalar), is at most max_norm, as
// torch.nn.utils.clip_grad_norm_ does: by max_norm / (norm + 1e-6) where that is below 1. max_norm 0: nothing.
void clip_gradients(models::Parameters& parameters, const at::Tensor& norm, double max_norm);

}  // namespace muster::optim
