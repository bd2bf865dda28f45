#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace muster::kernels {

// One dropout layer of one pass over one step.
struct DropoutKey {
  uint64_t seed = 0;
  uint32_t step = 0;
  uint32_t site = 0;  // random::kDropout + the layer's number
};

// Smallest 24-bit number that is kept: uniform(word) >= p  <=>  (word >> 8) >= threshold.
inline uint32_t keep_threshold(double p) { return static_cast<uint32_t>(std::ceil(p * 0x1p24 - 0.5)); }

// Inverted dropout of x [rows, dim], rows grouped by sample as `offsets` say: each element is zeroed with probability
// p, the others are divided by 1 - p. Differentiable. Element e (row-major within its sample) of the sample with global
// row g is kept iff uniform(word e % 4 of philox(seed, {e / 4, g, site, step})) >= p, so the mask depends on the sample
// and never on how samples are spread over microbatches or ranks; the backward pass makes it again instead of storing
// it. batch_index: one per sample. p in [0, 1); p == 0 returns x. float32, float64 or bfloat16, on the CPU or a GPU:
// the same bits.
at::Tensor dropout(const at::Tensor& x, double p, const std::vector<int64_t>& offsets,
                   const std::vector<int64_t>& batch_index, const DropoutKey& key);

// The same without a graph, for nodes that have a backward pass of their own: dropout is linear, and the gradient goes
// through the same mask.
at::Tensor dropout_pass(const at::Tensor& x, double p, const std::vector<int64_t>& offsets,
                        const std::vector<int64_t>& batch_index, const DropoutKey& key);

// The same for x [samples, dim], one row per sample.
at::Tensor dropout_rows(const at::Tensor& x, double p, const std::vector<int64_t>& batch_index, const DropoutKey& key);

}  // namespace muster::kernels
