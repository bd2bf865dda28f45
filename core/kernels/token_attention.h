#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace muster::kernels {

// Whether token_attention() takes these: on a CPU, float32 or float64, every sample with exactly one query.
bool is_token_attention(const at::Tensor& query, const std::vector<int64_t>& query_offsets);

// attention() where every sample has one query, its token: query [samples, dim]. Products this small take a matrix
// library longer to begin than to compute.
at::Tensor token_attention(const at::Tensor& query, const at::Tensor& key_value,
                           const std::vector<int64_t>& context_offsets, int64_t heads);

}  // namespace muster::kernels
