#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "core/losses/partition.h"

namespace muster::losses {

// How a cosine becomes a similarity. `temperature` is a scalar: a parameter or a constant.
struct Similarity {
  enum class Kind { kExpScale /* c * exp(t) */, kDivisor /* c / t */ } kind;
  at::Tensor temperature;

  at::Tensor operator()(const at::Tensor& cosine) const {
    return kind == Kind::kExpScale ? cosine * temperature.exp() : cosine / temperature;
  }
  // The factor that this multiplies cosines by.
  at::Tensor scale() const { return kind == Kind::kExpScale ? temperature.exp() : temperature.reciprocal(); }
};

enum class AvelTargets { kRowMean, kRowSum };

// The audio-video expression alignment loss (AVEL, arXiv 2408.09438) over the whole batch: cross entropy of both
// directions' softmax against same-label targets, (1 / 2N) sum_ij T_ij (-logsoftmax_j S_av - logsoftmax_j S_va).
// kRowMean divides each row's targets by their number (the sum over the global batch), kRowSum does not (the original
// code; the loss then grows with N). audio, video: unit rows [N, dim], on any one device, the temperature too; labels
// int64 [N], on the CPU. N >= 1. Returns a scalar, differentiable also in the temperature; neither it nor the gradients
// depend on how `share` deals the work: see contrastive.h.
at::Tensor avel_loss(const at::Tensor& audio, const at::Tensor& video, const at::Tensor& labels,
                     const Similarity& similarity, AvelTargets targets, const Partition& share = {});

constexpr int64_t kNegativeRows = 128;

// Hard negatives for emotion matching (MEM): for each row i of [begin, end) one column j with another label, drawn
// from the softmax of S over such columns by Gumbel-max with counter-based noise (philox counter {j, i, direction,
// step}), so that the draw depends on the global batch alone. direction 0: negative videos of audios (S_av), 1:
// negative audios of videos (S_va). Scores and noise in float64, computed for kNegativeRows rows of the global batch at
// a time whatever run of them is asked for, so that a row's choice is the same to the bit in any. Memory: kNegativeRows
// x N. queries, candidates: [N, dim]; on a GPU they are copied to the CPU, which waits for it. labels int64 [N], on the
// CPU. Returns one column per row, the smallest of equals; empty when the batch holds one label only.
std::vector<int64_t> draw_negatives(const at::Tensor& queries, const at::Tensor& candidates, const at::Tensor& labels,
                                    const Similarity& similarity, uint32_t direction, int64_t begin, int64_t end,
                                    uint64_t seed, uint32_t step);

}  // namespace muster::losses
