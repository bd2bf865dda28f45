#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "core/kernels/dropout.h"

namespace muster::kernels {

// Added to the score of query t and key s of a sample in head h: gate[row of t, h] * table[longest - 1 + s - t, h]. So
// one table holds a number for every distance, and the gate says how much of it a query takes.
struct AttentionBias {
  at::Tensor gate;   // [rows, heads]
  at::Tensor table;  // [2 * longest - 1, heads], longest: at least the rows of the longest sample
};

// Multi-head self-attention over a ragged batch with what attention() has not: an additive bias, and dropout of the
// attention weights with probability p. query [rows, dim], key_value [rows, 2 * dim], heads and scale as in
// attention.h; sample i is rows [offsets[i], offsets[i+1]) of both. Dropout follows dropout.h; the elements of a sample
// are its weights [heads, queries, keys]. One autograd node, differentiable in query, key_value, gate and table.
// Softmax, gate and table are in float32 where query is bfloat16, otherwise in its dtype.
at::Tensor biased_attention(const at::Tensor& query, const at::Tensor& key_value, const std::vector<int64_t>& offsets,
                            int64_t heads, const std::optional<AttentionBias>& bias, double p,
                            const std::vector<int64_t>& batch_index, const DropoutKey& key);

}  // namespace muster::kernels
