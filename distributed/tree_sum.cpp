#include "distributed/tree_sum.h"

#include <fmt/format.h>

#include <algorithm>

namespace muster::distributed {
namespace {

int64_t middle(int64_t lo, int64_t hi) { return lo + (hi - lo + 1) / 2; }

// Where part `part` of `length` elements begins.
int64_t part_start(int64_t length, int part, int parts) { return length * part / parts; }

[[noreturn]] void refuse_sum(const std::string& message) { throw Error(ExitCode::kInternal, "TreeSum: " + message); }

}  // namespace

TreeSum::TreeSum(int64_t leaves, std::vector<int64_t> boundaries, int rank)
    : leaves_(leaves), boundaries_(std::move(boundaries)), rank_(rank) {
  if (leaves < 1 || boundaries_.size() < 2 || boundaries_.front() != 0 || boundaries_.back() != leaves ||
      !std::is_sorted(boundaries_.begin(), boundaries_.end()))
    refuse_sum("boundaries must ascend from 0 to the number of leaves");
  if (rank < 0 || rank + 1 >= static_cast<int>(boundaries_.size()))
    refuse_sum(fmt::format("there are no boundaries for rank {}", rank));
  next_leaf_ = boundaries_[rank_];
}

bool TreeSum::is_node(int64_t lo, int64_t hi) const {
  for (int64_t node_lo = 0, node_hi = leaves_;;) {
    if (node_lo == lo && node_hi == hi) return true;
    if (node_hi - node_lo <= 1) return false;
    const int64_t mid = middle(node_lo, node_hi);
    if (hi <= mid)
      node_hi = mid;
    else if (lo >= mid)
      node_lo = mid;
    else
      return false;
  }
}

at::Tensor TreeSum::take_buffer(const at::Tensor& like) {
  if (!spare_.empty() && !(spare_[0].numel() == like.numel() && spare_[0].scalar_type() == like.scalar_type() &&
                           spare_[0].device() == like.device())) {
    buffers_ -= static_cast<int64_t>(spare_.size());
    spare_.clear();
  }
  if (spare_.empty()) {
    ++buffers_;
    return at::empty_like(like);
  }
  at::Tensor buffer = std::move(spare_.back());
  spare_.pop_back();
  return buffer;
}

// Neighbours that are children of one node become that node. Two nodes that tile a node are its children.
void TreeSum::merge_siblings() {
  while (stack_.size() > 1 && is_node(stack_[stack_.size() - 2].lo, stack_.back().hi)) {
    Node right = std::move(stack_.back());
    stack_.pop_back();
    Node& left = stack_.back();
    left.hi = right.hi;
    if (!left.sum.defined()) {
      left.sum = std::move(right.sum);
    } else if (right.sum.defined()) {
      left.sum.add_(right.sum);
      spare_.push_back(std::move(right.sum));
    }
  }
}

void TreeSum::push(int64_t leaf, const at::Tensor& flat) {
  if (flat.defined()) {
    // Added straight to its sibling where that is complete: no copy of a right child.
    if (!stack_.empty() && stack_.back().sum.defined() && is_node(stack_.back().lo, leaf + 1)) {
      stack_.back().sum.add_(flat);
      stack_.back().hi = leaf + 1;
    } else {
      at::Tensor buffer = take_buffer(flat);
      buffer.copy_(flat);
      stack_.push_back({leaf, leaf + 1, std::move(buffer)});
    }
  } else {
    stack_.push_back({leaf, leaf + 1, at::Tensor()});
  }
  merge_siblings();
}

void TreeSum::add(int64_t leaf, const at::Tensor& flat) {
  at::NoGradGuard no_grad;
  if (leaf < next_leaf_ || leaf >= boundaries_[rank_ + 1])
    refuse_sum(fmt::format("leaf {} of rank {} is out of order: expected {} ... {}", leaf, rank_, next_leaf_,
                           boundaries_[rank_ + 1] - 1));
  if (flat.dim() != 1 || !flat.is_contiguous() || !flat.is_floating_point())
    refuse_sum("leaves are contiguous floating-point vectors");
  for (const Node& node : stack_)
    if (node.sum.defined() && (node.sum.numel() != flat.numel() || node.sum.scalar_type() != flat.scalar_type() ||
                               node.sum.device() != flat.device()))
      refuse_sum(fmt::format("leaf {} has another length, dtype or device than the leaves before it", leaf));
  while (next_leaf_ < leaf) push(next_leaf_++, at::Tensor());
  push(next_leaf_++, flat);
}

// The largest nodes that tile [lo, hi), within the node [node_lo, node_hi).
std::vector<TreeSum::Node> TreeSum::cover(int64_t lo, int64_t hi, int64_t node_lo, int64_t node_hi) const {
  lo = std::max(lo, node_lo);
  hi = std::min(hi, node_hi);
  if (lo >= hi) return {};
  if (lo == node_lo && hi == node_hi) return {Node{lo, hi, at::Tensor()}};
  const int64_t mid = middle(node_lo, node_hi);
  std::vector<Node> nodes = cover(lo, hi, node_lo, mid);
  for (Node& node : cover(lo, hi, mid, node_hi)) nodes.push_back(node);
  return nodes;
}

// This rank's nodes, cut into the ranks' parts: part 0 of each node, part 1 of each node, ...
at::Tensor TreeSum::pack(const at::Tensor& result, int ranks) const {
  std::vector<at::Tensor> sums;
  for (const Node& node : stack_)
    if (node.sum.defined()) sums.push_back(node.sum);
  if (sums.empty()) return result.slice(0, 0, 0);
  if (sums.size() == 1) return sums[0];  // in this order already
  std::vector<at::Tensor> parts;
  for (int part = 0; part < ranks; ++part)
    for (const at::Tensor& sum : sums)
      parts.push_back(
          sum.slice(0, part_start(result.numel(), part, ranks), part_start(result.numel(), part + 1, ranks)));
  return at::cat(parts);
}

// The sum of node [lo, hi) out of `nodes`, which tile the tree; undefined when all of it is absent.
at::Tensor TreeSum::finish(std::vector<Node>& nodes, size_t& next, int64_t lo, int64_t hi) const {
  if (nodes[next].lo == lo && nodes[next].hi == hi) return nodes[next++].sum;
  const int64_t mid = middle(lo, hi);
  at::Tensor left = finish(nodes, next, lo, mid), right = finish(nodes, next, mid, hi);
  if (!left.defined()) return right;
  return right.defined() ? left.add_(right) : left;
}

void TreeSum::restart() {
  for (Node& node : stack_)
    if (node.sum.defined()) spare_.push_back(std::move(node.sum));
  stack_.clear();
  next_leaf_ = boundaries_[rank_];
}

void TreeSum::reduce(Communicator& communicator, at::Tensor result) {
  at::NoGradGuard no_grad;
  const int ranks = communicator.size();
  if (ranks + 1 != static_cast<int>(boundaries_.size()) || communicator.rank() != rank_)
    refuse_sum(fmt::format("made for rank {} of {}, used by rank {} of {}", rank_, boundaries_.size() - 1,
                           communicator.rank(), ranks));
  if (result.dim() != 1 || !result.is_contiguous() || !result.is_floating_point())
    refuse_sum("the result is a contiguous vector");
  for (const Node& node : stack_)
    if (node.sum.defined() && (node.sum.numel() != result.numel() || node.sum.scalar_type() != result.scalar_type() ||
                               node.sum.device() != result.device()))
      refuse_sum("the result has another length, dtype or device than the leaves");
  while (next_leaf_ < boundaries_[rank_ + 1]) push(next_leaf_++, at::Tensor());

  if (ranks == 1) {
    if (stack_[0].sum.defined())
      result.copy_(stack_[0].sum);
    else
      result.zero_();
    return restart();
  }

  // Which nodes of the others are absent is known to them only.
  std::string own_presence;
  for (const Node& node : stack_) own_presence += node.sum.defined() ? '+' : '-';
  const auto presence = communicator.all_gather_bytes(own_presence);
  const auto part_length = [&](int part) {
    return part_start(result.numel(), part + 1, ranks) - part_start(result.numel(), part, ranks);
  };
  const int64_t own_nodes = std::count(own_presence.begin(), own_presence.end(), '+');
  std::vector<int64_t> sends, receives, lengths;
  for (int peer = 0; peer < ranks; ++peer) {
    lengths.push_back(part_length(peer));
    sends.push_back(own_nodes * part_length(peer));
    receives.push_back(std::count(presence[peer].begin(), presence[peer].end(), '+') * part_length(rank_));
  }
  at::Tensor received = communicator.all_to_all_rows(pack(result, ranks), sends, receives);

  std::vector<Node> nodes;
  int64_t start = 0;
  for (int peer = 0; peer < ranks; ++peer) {
    size_t index = 0;
    for (Node& node : cover(boundaries_[peer], boundaries_[peer + 1], 0, leaves_)) {
      if (presence[peer][index++] == '+') {
        node.sum = received.slice(0, start, start + part_length(rank_));
        start += part_length(rank_);
      }
      nodes.push_back(node);
    }
  }
  size_t next = 0;
  at::Tensor part = finish(nodes, next, 0, leaves_);
  if (!part.defined()) part = at::zeros({part_length(rank_)}, result.options());
  result.copy_(communicator.all_gather_rows(part, lengths));
  restart();
}

}  // namespace muster::distributed
