#include "core/losses/avel.h"

#include <cmath>

#include "core/random/philox.h"

namespace muster::losses {

at::Tensor avel_loss(const at::Tensor& audio, const at::Tensor& video, const at::Tensor& labels, const Similarity& similarity,
                     AvelTargets targets) {
  const at::Tensor cosine = at::mm(audio, video.t());
  const at::Tensor audio_to_video = similarity(cosine);
  at::Tensor weights = labels.unsqueeze(1).eq(labels.unsqueeze(0)).to(cosine.scalar_type());
  if (targets == AvelTargets::kRowMean) weights = weights / weights.sum(1, true);
  const at::Tensor log_probabilities = at::log_softmax(audio_to_video, 1) + at::log_softmax(audio_to_video.t(), 1);
  return (weights * log_probabilities).sum() * (-0.5 / static_cast<double>(labels.size(0)));
}

std::vector<int64_t> draw_negatives(const at::Tensor& queries, const at::Tensor& candidates, const at::Tensor& labels,
                                    const Similarity& similarity, uint32_t direction, int64_t begin, int64_t end, uint64_t seed,
                                    uint32_t step) {
  const at::NoGradGuard no_gradient;
  const Similarity exact{similarity.kind, similarity.temperature.to(at::kDouble)};
  const at::Tensor scores =
      exact(at::mm(queries.narrow(0, begin, end - begin).to(at::kDouble), candidates.to(at::kDouble).t())).contiguous();
  const int64_t columns = candidates.size(0);
  const double* score = scores.const_data_ptr<double>();
  const int64_t* label = labels.const_data_ptr<int64_t>();
  std::vector<int64_t> chosen;
  chosen.reserve(end - begin);
  for (int64_t i = begin; i < end; ++i, score += columns) {
    int64_t best = -1;
    double best_score = 0;
    for (int64_t j = 0; j < columns; ++j) {
      if (label[j] == label[i]) continue;
      const auto words = random::philox4x32(seed, {static_cast<uint32_t>(j), static_cast<uint32_t>(i), direction, step});
      const double noisy = score[j] - std::log(-std::log(random::uniform(words[0])));
      // A NaN score (diverged weights) still yields a valid column; the loss itself then reports the divergence.
      if (best < 0 || noisy > best_score) {
        best = j;
        best_score = noisy;
      }
    }
    if (best < 0) return {};
    chosen.push_back(best);
  }
  return chosen;
}

}  // namespace muster::losses
