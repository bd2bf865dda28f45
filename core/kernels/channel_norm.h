#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace muster::kernels {

// Rows [begin, begin + count) of a longer table.
struct RowSpan {
  int64_t begin, count;
};

// Each channel of each span over its rows: (x - mean) / sqrt(biased variance + epsilon) * weight + bias, as
// torch.nn.GroupNorm with one channel per group on each span alone. x [rows, channels]; rows outside the spans become
// 0, and get a gradient of 0. One autograd node.
at::Tensor channel_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                        const std::vector<RowSpan>& spans, double epsilon);

}  // namespace muster::kernels
