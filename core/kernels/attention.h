#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace muster::kernels {

// Multi-head scaled dot-product attention over a ragged batch, as one autograd node.
// query [query rows, dim], key_value [context rows, 2 * dim] (columns [0, dim) keys, [dim, 2 dim) values); sample i's
// queries see exactly sample i's context rows. Head h is columns [h * dim/heads, (h+1) * dim/heads); scale
// 1/sqrt(dim/heads); no dropout on the weights. A query whose context is empty gets 0. Returns [query rows, dim]. Both
// inputs must have one dtype.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key_value, const std::vector<int64_t>& query_offsets,
                     const std::vector<int64_t>& context_offsets, int64_t heads);

// Mean of each sample's rows: values [rows, dim] -> [samples, dim]; 0 for an empty sample. One autograd node.
at::Tensor segment_mean(const at::Tensor& values, const std::vector<int64_t>& offsets);

}  // namespace muster::kernels
