#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

namespace muster::kernels {

// x in the dtype that autocast gives to matrix products on its device, for nodes of our own, which autocast does not
// see. Differentiable.
inline at::Tensor autocast_for_products(const at::Tensor& x) {
  const at::DeviceType device = x.device().type();
  return at::autocast::is_autocast_enabled(device) ? x.to(at::autocast::get_autocast_dtype(device)) : x;
}

}  // namespace muster::kernels
