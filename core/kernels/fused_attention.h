#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace muster::kernels {

// Whether fused_attention() can do it: float32 or bfloat16 on a GPU, heads as wide as the kernel's loads need, and no
// sample without queries or context, for which PyTorch's kernel leaves the gradient undefined. What it cannot do,
// attention()'s loop over samples can.
bool can_fuse_attention(const at::Tensor& query, const std::vector<int64_t>& query_offsets,
                        const std::vector<int64_t>& context_offsets, int64_t heads);

// attention() on a GPU as one kernel per direction (PyTorch's memory-efficient attention with variable lengths):
// nothing of size queries x context is stored, and the host never waits. float32 products are as exact as float32's
// (three TF32 products each). The same bits every time when at::globalContext().deterministicAlgorithms() is on.
at::Tensor fused_attention(const at::Tensor& query, const at::Tensor& key_value,
                           const std::vector<int64_t>& query_offsets, const std::vector<int64_t>& context_offsets,
                           int64_t heads);

}  // namespace muster::kernels
