#include "core/losses/avel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/losses/contrastive.h"
#include "core/random/philox.h"
#include "core/random/philox_lanes.h"

namespace muster::losses {
namespace {

// At least -log(-log u), the Gumbel noise of a word: -log u >= 1 - u, so it is at most -log(1 - u), and that at most -e
// ln 2 where 2^e <= 1 - u. The factor is ln 2 and 4e-11 more, which outweighs what rounding can add to the noise.
double noise_bound(uint32_t word) {
  const double rest = (0x1000000 - static_cast<int32_t>(word >> 8) - 0.5) * 0x1p-24;
  uint64_t bits;
  std::memcpy(&bits, &rest, sizeof bits);
  return (1023 - static_cast<int32_t>(bits >> 52)) * 0.6931471806;
}

// The draw for row i. Few candidates can beat the best so far; only for those is the noise itself computed.
int64_t draw_one(const double* score, const int64_t* label, int64_t columns, int64_t i, uint32_t direction,
                 uint64_t seed, uint32_t step) {
  constexpr int64_t kChunk = random::kLanes;
  int64_t best = -1;
  double best_score = 0;
  uint32_t words[kChunk];
  for (int64_t start = 0; start < columns; start += kChunk) {
    random::philox_first_words(seed, static_cast<uint32_t>(start), static_cast<uint32_t>(i), direction, step, words);
    const int64_t end = std::min(start + kChunk, columns);
    for (int64_t j = start; j < end; ++j) {
      const uint32_t word = words[j - start];
      if (label[j] == label[i] || (best >= 0 && score[j] + noise_bound(word) <= best_score)) continue;
      const double noisy = score[j] - std::log(-std::log(random::uniform(word)));
      // A NaN score (diverged weights) still yields a valid column; the loss itself then reports the divergence.
      if (best < 0 || noisy > best_score) {
        best = j;
        best_score = noisy;
      }
    }
  }
  return best;
}

}  // namespace

at::Tensor avel_loss(const at::Tensor& audio, const at::Tensor& video, const at::Tensor& labels,
                     const Similarity& similarity, AvelTargets targets, const Partition& partition) {
  return contrastive_loss(audio, video, similarity.scale(), labels,
                          targets == AvelTargets::kRowMean ? PairTargets::kClassMean : PairTargets::kClassSum,
                          partition);
}

std::vector<int64_t> draw_negatives(const at::Tensor& queries, const at::Tensor& candidates, const at::Tensor& labels,
                                    const Similarity& similarity, uint32_t direction, int64_t begin, int64_t end,
                                    uint64_t seed, uint32_t step) {
  const at::NoGradGuard no_gradient;
  const int64_t* label = labels.const_data_ptr<int64_t>();
  const int64_t columns = candidates.size(0);
  // Labels stand for all rows alike: either every row has a candidate or none has.
  if (begin == end || std::all_of(label, label + columns, [&](int64_t other) { return other == label[0]; })) return {};
  const Similarity exact{similarity.kind, similarity.temperature.to(at::kCPU, at::kDouble)};
  const int64_t first = begin / kNegativeRows * kNegativeRows;
  const int64_t last = std::min((end - 1) / kNegativeRows * kNegativeRows + kNegativeRows, queries.size(0));
  const at::Tensor rows = queries.narrow(0, first, last - first).to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor others = candidates.to(at::kCPU, at::kDouble).contiguous().t();
  std::vector<int64_t> chosen(end - begin);
  for (int64_t block = first; block < last; block += kNegativeRows) {
    const int64_t height = std::min(kNegativeRows, last - block);
    const at::Tensor scores = exact(at::mm(rows.narrow(0, block - first, height), others));
    const double* score = scores.const_data_ptr<double>();
    at::parallel_for(std::max(begin, block), std::min(end, block + height), 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        chosen[i - begin] = draw_one(score + (i - block) * columns, label, columns, i, direction, seed, step);
    });
  }
  return chosen;
}

}  // namespace muster::losses
