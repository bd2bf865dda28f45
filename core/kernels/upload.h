#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace muster::kernels {

// A tensor or numbers from the host on `device`, without making the host wait: a copy from page-locked memory, which
// PyTorch's allocator keeps until the copy on the current stream is done. On the CPU a tensor is returned as it is.
inline at::Tensor upload(const at::Tensor& host, at::Device device) {
  return device.is_cuda() ? host.pin_memory().to(device, /*non_blocking=*/true) : host;
}

template <typename To = int64_t>
at::Tensor upload(const std::vector<int64_t>& numbers, at::Device device) {
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<To>::value).pinned_memory(device.is_cuda());
  at::Tensor host = at::empty({static_cast<int64_t>(numbers.size())}, options);
  To* out = host.mutable_data_ptr<To>();
  for (const int64_t number : numbers) *out++ = static_cast<To>(number);
  return host.to(device, /*non_blocking=*/true);
}

}  // namespace muster::kernels
