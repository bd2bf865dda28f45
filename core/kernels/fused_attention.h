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

// Whether biased_attention() leaves it to fused_biased_attention(): on a GPU, but not where every run must have the
// same bits, since PyTorch chooses the kernel.
bool can_fuse_biased_attention(const at::Tensor& query);

// biased_attention() without dropout, by PyTorch's scaled_dot_product_attention on consecutive samples of equal length:
// on GPUs a fused kernel, which does not keep what is of size queries x context for the backward pass. bias: gate
// [rows, heads] and table [2 * longest - 1, heads], as in biased_attention.h; their product is rounded to query's
// dtype.
at::Tensor fused_biased_attention(const at::Tensor& query, const at::Tensor& key_value, const at::Tensor& gate,
                                  const at::Tensor& table, const std::vector<int64_t>& offsets, int64_t heads);

}  // namespace muster::kernels
