#pragma once

#include <string_view>
#include <vector>

#include "checkpoints/safetensors.h"
#include "checkpoints/shares.h"

namespace muster::checkpoints {

// The memory that a rank's shard is written from while training changes the tensors. Kept from save to save.
class Staging {
 public:
  // Memory for `size` bytes, with its pages in place: those of new memory would otherwise be made, one by one, while
  // training waits. pinned: page-locked, as copies from GPUs need it.
  void reserve(uint64_t size, bool pinned);

  // The contents of the shard: its head, then the pieces of `tensors` (in the order that `layout` counts them in). May
  // be called again when the last contents are no longer needed. copy: they stay as they are when the tensors change;
  // otherwise tensors on the CPU are referred to where they are.
  std::vector<std::string_view> stage(const std::vector<const NamedTensor*>& tensors, const ShardLayout& layout,
                                      bool copy);

 private:
  at::Tensor buffer_;
};

}  // namespace muster::checkpoints
