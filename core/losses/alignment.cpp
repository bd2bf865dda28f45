#include "core/losses/alignment.h"

namespace muster::losses {

at::Tensor alignment_loss(const std::vector<at::Tensor>& embeddings, const at::Tensor& presence, double temperature) {
  at::Tensor total = at::zeros({}, embeddings[0].options());
  int64_t pairs = 0;
  const bool complete = presence.all().item<bool>();
  for (size_t p = 0; p < embeddings.size(); ++p) {
    for (size_t q = p + 1; q < embeddings.size(); ++q) {
      ++pairs;
      at::Tensor first = embeddings[p], second = embeddings[q];
      if (!complete) {
        const at::Tensor both =
            presence.select(1, static_cast<int64_t>(p)).logical_and(presence.select(1, static_cast<int64_t>(q))).nonzero().squeeze(1);
        if (both.numel() == 0) continue;
        first = first.index_select(0, both);
        second = second.index_select(0, both);
      }
      const at::Tensor similarity = at::mm(first, second.t()) / temperature;
      const at::Tensor log_probabilities =
          at::log_softmax(similarity, 1).diagonal() + at::log_softmax(similarity.t(), 1).diagonal();
      total = total - log_probabilities.sum() * (0.5 / static_cast<double>(first.size(0)));
    }
  }
  return total / static_cast<double>(pairs);
}

}  // namespace muster::losses
