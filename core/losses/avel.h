#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace muster::losses {

// How a cosine becomes a similarity. `temperature` is a scalar: a parameter or a constant.
struct Similarity {
  enum class Kind { kExpScale /* c * exp(t) */, kDivisor /* c / t */ } kind;
  at::Tensor temperature;

  at::Tensor operator()(const at::Tensor& cosine) const {
    return kind == Kind::kExpScale ? cosine * temperature.exp() : cosine / temperature;
  }
};

enum class AvelTargets { kRowMean, kRowSum };

// Foal-Net's audio-video expression alignment loss over the whole batch: cross entropy of both directions' softmax against
// same-label targets, (1 / 2N) sum_ij T_ij (-logsoftmax_j S_av - logsoftmax_j S_va). kRowMean divides each row's targets by
// their number (the sum over the global batch), kRowSum does not (the original code; the loss then grows with N).
// audio, video: unit rows [N, dim]; labels int64 [N]. Returns a scalar, differentiable also in the temperature. N >= 1.
at::Tensor avel_loss(const at::Tensor& audio, const at::Tensor& video, const at::Tensor& labels, const Similarity& similarity,
                     AvelTargets targets);

// Foal-Net's hard negatives for emotion matching: for each row i of [begin, end) one column j with another label, drawn from the
// softmax of S over such columns by Gumbel-max with counter-based noise (philox counter {j, i, direction, step}), so that the draw
// depends on the global batch alone. direction 0: negative videos of audios (S_av), 1: negative audios of videos (S_va).
// Scores and noise in float64. Returns one column per row; empty when the batch holds one label only.
std::vector<int64_t> draw_negatives(const at::Tensor& queries, const at::Tensor& candidates, const at::Tensor& labels,
                                    const Similarity& similarity, uint32_t direction, int64_t begin, int64_t end, uint64_t seed,
                                    uint32_t step);

}  // namespace muster::losses
