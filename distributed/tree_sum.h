#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "distributed/communicator.h"

namespace muster::distributed {

// The sum of V flat tensors ("leaves": the gradients of V microbatches) whose bits depend neither on the number of
// ranks nor on which rank holds which leaves. A plain all-reduce promises neither: it adds in an order of its own.
//
// The additions form one fixed binary tree over [0, V): the node [lo, hi) adds the nodes [lo, mid) and [mid, hi), where
// mid = lo + (hi - lo + 1) / 2. A leaf may be absent (a microbatch without samples): absent + x is x, without an
// addition.
//
// Rank r holds the leaves boundaries[r] ... boundaries[r + 1] - 1. It adds up the subtrees that it holds whole as
// leaves arrive; then each rank finishes the tree on its part of the length, and the parts are gathered. Per rank about
// 2 (W-1)/W of a leaf's bytes are sent, as by an all-reduce, when boundaries fall on nodes; otherwise up to 2 log2(V)
// times as much in the first half.
class TreeSum {
 public:
  // `boundaries`: [W + 1], ascending from 0 to `leaves`, the same on every rank; equal neighbours are a rank without
  // leaves. Throws Error(kInternal) when they are not that.
  TreeSum(int64_t leaves, std::vector<int64_t> boundaries, int rank);

  // Takes in a leaf of this rank. Ascending order; a leaf left out is absent. `flat`: [length], contiguous, floating
  // point, the same length, dtype and device for all leaves; copied or added at once, so the caller may overwrite it.
  // Not collective. At most about log2(V) + 1 (unaligned boundaries: 2 log2(V)) buffers of that length live here, and
  // are kept for the next sum.
  void add(int64_t leaf, const at::Tensor& flat);

  // Collective. Writes the sum of all leaves of all ranks to `result` ([length], contiguous, as the leaves; zeros when
  // all are absent) on every rank, and starts anew. With one rank nothing is sent.
  void reduce(Communicator& communicator, at::Tensor result);

  // Buffers held, in use or kept: what this costs in memory, in leaves.
  int64_t buffers() const { return buffers_; }

 private:
  struct Node {
    int64_t lo, hi;
    at::Tensor sum;  // undefined: absent
  };

  void push(int64_t leaf, const at::Tensor& flat);
  void merge_siblings();
  bool is_node(int64_t lo, int64_t hi) const;
  std::vector<Node> cover(int64_t lo, int64_t hi, int64_t node_lo, int64_t node_hi) const;
  at::Tensor finish(std::vector<Node>& nodes, size_t& next, int64_t lo, int64_t hi) const;
  at::Tensor pack(const at::Tensor& result, int ranks) const;
  at::Tensor take_buffer(const at::Tensor& like);
  void restart();

  int64_t leaves_;
  std::vector<int64_t> boundaries_;
  int rank_;
  int64_t next_leaf_;
  std::vector<Node> stack_;        // complete subtrees of this rank, ascending
  std::vector<at::Tensor> spare_;  // kept for reuse, all of one kind
  int64_t buffers_ = 0;
};

}  // namespace muster::distributed
