#include "core/losses/alignment.h"

#include "core/kernels/upload.h"
#include "core/losses/contrastive.h"

namespace muster::losses {
namespace {

// The share of the work on the rows `kept` (ascending) alone.
Partition share_of(const at::Tensor& kept, Partition partition) {
  if (partition.gradient_end < 0) return partition;
  partition.gradient_begin = kept.lt(partition.gradient_begin).sum().item<int64_t>();
  partition.gradient_end = kept.lt(partition.gradient_end).sum().item<int64_t>();
  return partition;
}

}  // namespace

at::Tensor alignment_loss(const std::vector<at::Tensor>& embeddings, const at::Tensor& presence, double temperature,
                          const Partition& partition) {
  at::Tensor total = at::zeros({}, embeddings[0].options());
  const at::Tensor scale = at::scalar_tensor(1 / temperature, embeddings[0].options());
  int64_t pairs = 0;
  const bool complete = presence.all().item<bool>();
  for (size_t p = 0; p < embeddings.size(); ++p) {
    for (size_t q = p + 1; q < embeddings.size(); ++q) {
      ++pairs;
      if (complete) {
        total = total + contrastive_loss(embeddings[p], embeddings[q], scale, {}, PairTargets::kOwn, partition);
        continue;
      }
      const at::Tensor both = presence.select(1, static_cast<int64_t>(p))
                                  .logical_and(presence.select(1, static_cast<int64_t>(q)))
                                  .nonzero()
                                  .squeeze(1);
      if (both.numel() == 0) continue;
      const at::Tensor rows = kernels::upload(both, embeddings[p].device());
      total = total + contrastive_loss(embeddings[p].index_select(0, rows), embeddings[q].index_select(0, rows), scale,
                                       {}, PairTargets::kOwn, share_of(both, partition));
    }
  }
  return total / static_cast<double>(pairs);
}

}  // namespace muster::losses
