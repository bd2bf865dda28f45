#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <vector>

// Convolutions over time of rows [time, channels], as torch.nn.Conv1d computes them, by matrix products alone: the same
// bits every time. Each is one autograd node. Under autocast they run as matrix products do.
namespace muster::kernels {

// y_t = b + sum_j W[:, :, j] x_{t * stride + j}. x [rows, in], weight [out, in, taps], bias [out] or none ->
// [(rows - taps) / stride + 1, out], no row where rows < taps. Sequences of different lengths may stand one after
// another in x, each beginning at a multiple of the strides' product: no row of the result that is one's own sees
// another's.
at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       int64_t stride);

// y_t = sum_j W[:, :, j] x_{t + j - taps / 2}, with zeros beyond both ends of each sample; channels in `groups` that do
// not see each other. x [rows, dim], sample i is rows [offsets[i], offsets[i+1]); weight [dim, dim / groups, taps] ->
// [rows, dim].
at::Tensor same_convolution(const at::Tensor& x, const at::Tensor& weight, const std::vector<int64_t>& offsets,
                            int64_t groups);

}  // namespace muster::kernels
