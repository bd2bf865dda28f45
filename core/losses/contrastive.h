#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "core/losses/partition.h"

namespace muster::losses {

// Target weights T_ij of the positive pairs of a contrastive loss; other pairs have 0.
enum class PairTargets {
  kOwn,        // 1 for i == j
  kClassMean,  // 1 / (rows of that label) for equal labels
  kClassSum,   // 1 for equal labels
};

// From this many rows on the work is shared among the parts of a Partition (on a GPU from 2049 on: a block of rows is
// not split); below it every part does everything, which is sooner done than an exchange, and `gather` is not called.
constexpr int64_t kSharedRows = 1024;

// The symmetric contrastive loss over all pairs of rows, in tiles: with S = scale * u v^T,
//   L = 1/(2N) sum_ij T_ij (-logsoftmax_j S_ij - logsoftmax_i S_ij).
// The forward pass keeps each row's and column's log-sum-exp, the backward pass computes the tiles again: memory O(N
// dim + tile); when shared also O(N^2 / tile rows) for the exchange. Below kSharedRows the tiles are kept instead.
//
// u, v: [N, dim], N >= 1, float32 or float64, on one device; scale: scalar there, not 0; labels: int64 [N] on the CPU,
// not read for kOwn. Returns a scalar of u's dtype, one node of the autograd graph, differentiable once in u, v and
// scale; statistics are combined in float64.
//
// Sharing (see kSharedRows): every part must call with the same arguments but for part and range. Forward: the parts
// deal whole blocks of rows among themselves and exchange statistics by two calls of partition.gather, on tensors on
// u's device. Backward: no exchange; only the blocks that meet [gradient_begin, gradient_end) get their gradients,
// other rows stay 0 (the range is respected below kSharedRows too). The value, the gradient of scale and each row's
// gradient are the same bits for any parts, part and range, given the same number of threads: whoever computes a tile
// does so with equal shapes and strides, and tiles are summed in one order.
at::Tensor contrastive_loss(const at::Tensor& u, const at::Tensor& v, const at::Tensor& scale, const at::Tensor& labels,
                            PairTargets targets, const Partition& share = {});

}  // namespace muster::losses
