// Attention with a bias by distance, and dropout of its weights, against PyTorch's operators one sample at a time.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "core/kernels/biased_attention.h"
#include "core/kernels/fused_attention.h"
#include "core/random/philox.h"
#include "tests/core/kernels/plain_attention.h"
#include "tests/helpers/rounding.h"

namespace muster::kernels {
namespace {

struct BiasedCase {
  std::vector<int64_t> lengths;
  int64_t heads, dim, longest;  // longest 0: no bias
  double p;
};

void PrintTo(const BiasedCase& c, std::ostream* out) { *out << c.heads << " heads, dim " << c.dim << ", p " << c.p; }

const std::vector<int64_t>& places() {
  static const std::vector<int64_t> places{7, 3, 12, 0, 5, 6, 90, 91};
  return places;
}

constexpr DropoutKey kBiasedAttentionKey{99, 4, random::kDropout + 70000};

// What dropout.h promises, one element at a time.
at::Tensor plain_mask(int64_t sample, int64_t elements, double p) {
  at::Tensor mask = at::zeros({elements}, at::kDouble);
  for (int64_t e = 0; e < elements; ++e) {
    const auto words = random::philox4x32(kBiasedAttentionKey.seed,
                                          {static_cast<uint32_t>(e / 4), static_cast<uint32_t>(places()[sample]),
                                           kBiasedAttentionKey.site, kBiasedAttentionKey.step});
    if (random::uniform(words[e % 4]) >= p) mask.mutable_data_ptr<double>()[e] = 1 / (1 - p);
  }
  return mask;
}

at::Tensor plain_biased_attention(const at::Tensor& query, const at::Tensor& key_value, const at::Tensor& gate,
                                  const at::Tensor& table, const std::vector<int64_t>& offsets, const BiasedCase& c) {
  std::vector<at::Tensor> outputs;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const int64_t rows = offsets[s + 1] - offsets[s];
    const auto per_head = [&](const at::Tensor& x) {
      return x.reshape({rows, c.heads, c.dim / c.heads}).permute({1, 0, 2});
    };
    const auto own = [&](const at::Tensor& x) { return x.slice(0, offsets[s], offsets[s + 1]); };
    const at::Tensor q = per_head(own(query)), k = per_head(own(key_value).slice(1, 0, c.dim)),
                     v = per_head(own(key_value).slice(1, c.dim, 2 * c.dim));
    at::Tensor scores = at::matmul(q, k.transpose(1, 2)) / std::sqrt(double(c.dim / c.heads));
    if (c.longest > 0) {
      const at::Tensor rows_of_table = at::arange(rows).unsqueeze(0) - at::arange(rows).unsqueeze(1) + c.longest - 1;
      scores = scores + own(gate).t().unsqueeze(2) * table.index({rows_of_table}).permute({2, 0, 1});
    }
    at::Tensor weights = scores.softmax(-1);
    if (c.p > 0)
      weights =
          weights *
          plain_mask(static_cast<int64_t>(s), weights.numel(), c.p).view(weights.sizes()).to(weights.scalar_type());
    outputs.push_back(at::matmul(weights, v).permute({1, 0, 2}).reshape({rows, c.dim}));
  }
  return at::cat(outputs);
}

// In double precision, with its gradients.
TEST(FusedBiasedAttention, EqualsPlainAttention) {
  at::manual_seed(3);
  const BiasedCase c{{3, 0, 5, 5, 1, 7}, 2, 8, 9, 0};
  const auto offsets = offsets_of(c.lengths);
  const int64_t rows = offsets.back();
  const std::vector<at::Tensor> inputs{at::randn({rows, c.dim}, at::kDouble), at::randn({rows, 2 * c.dim}, at::kDouble),
                                       at::randn({rows, c.heads}, at::kDouble),
                                       at::randn({2 * c.longest - 1, c.heads}, at::kDouble)};
  const at::Tensor cotangent = at::randn({rows, c.dim}, at::kDouble);
  std::vector<std::vector<at::Tensor>> results;
  for (const bool fused : {true, false}) {
    std::vector<at::Tensor> x;
    for (const auto& input : inputs) x.push_back(leaf(input));
    const at::Tensor output = fused ? fused_biased_attention(x[0], x[1], x[2], x[3], offsets, c.heads)
                                    : plain_biased_attention(x[0], x[1], x[2], x[3], offsets, c);
    (output * cotangent).sum().backward();
    results.push_back({output.detach()});
    for (const auto& one : x) results.back().push_back(gradient_of(one));
  }
  for (size_t i = 0; i < results[0].size(); ++i) EXPECT_LT(largest_error(results[0][i], results[1][i]), 1e-12) << i;
}

class BiasedAttention : public ::testing::TestWithParam<BiasedCase> {};

TEST_P(BiasedAttention, EqualsPlainAttention) {
  const BiasedCase& c = GetParam();
  at::manual_seed(3);
  const auto offsets = offsets_of(c.lengths);
  const int64_t rows = offsets.back();
  const std::vector<int64_t> batch_index(places().begin(), places().begin() + static_cast<int64_t>(c.lengths.size()));
  const at::Tensor cotangent = at::randn({rows, c.dim}, at::kDouble);
  const std::vector<at::Tensor> inputs{at::randn({rows, c.dim}, at::kDouble), at::randn({rows, 2 * c.dim}, at::kDouble),
                                       at::randn({rows, c.heads}, at::kDouble),
                                       at::randn({std::max<int64_t>(1, 2 * c.longest - 1), c.heads}, at::kDouble)};
  // Output and gradients.
  const auto differentiated = [&](bool ours, at::ScalarType given, at::ScalarType in) {
    std::vector<at::Tensor> leaves, results;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const auto rounded = i < 2 || given == at::kDouble ? given : at::kFloat;  // gate and table stay in float32
      leaves.push_back(leaf(inputs[i].to(rounded).to(in)));
    }
    std::optional<AttentionBias> bias;
    if (c.longest > 0) bias = AttentionBias{leaves[2], leaves[3]};
    results.push_back(ours ? biased_attention(leaves[0].to(given), leaves[1].to(given), offsets, c.heads, bias, c.p,
                                              batch_index, kBiasedAttentionKey)
                           : plain_biased_attention(leaves[0], leaves[1], leaves[2], leaves[3], offsets, c));
    (results[0] * cotangent.to(given).to(results[0].scalar_type())).sum().backward();
    results[0] = results[0].detach();
    for (size_t i = 0; i < (c.longest > 0 ? 4 : 2); ++i) results.push_back(gradient_of(leaves[i]));
    return results;
  };
  const auto ours = differentiated(true, at::kDouble, at::kDouble),
             theirs = differentiated(false, at::kDouble, at::kDouble);
  for (size_t i = 0; i < ours.size(); ++i) EXPECT_LT(largest_error(ours[i], theirs[i]), 1e-12) << i;

  const auto in_float = differentiated(true, at::kFloat, at::kFloat),
             plain_float = differentiated(false, at::kFloat, at::kFloat),
             truth = differentiated(false, at::kFloat, at::kDouble);
  for (size_t i = 0; i < ours.size(); ++i)
    expect_as_exact_as_pytorch(in_float[i], plain_float[i], truth[i], 1, fmt::format("float32, {}", i));
  const auto in_bfloat16 = differentiated(true, at::kBFloat16, at::kFloat),
             bfloat16_truth = differentiated(false, at::kBFloat16, at::kDouble);
  for (size_t i = 0; i < ours.size(); ++i)
    EXPECT_LT((in_bfloat16[i].to(at::kDouble) - bfloat16_truth[i]).norm().item<double>(),
              0.02 * bfloat16_truth[i].norm().item<double>() + 1e-12)
        << i;
}

INSTANTIATE_TEST_SUITE_P(Lengths, BiasedAttention,
                         ::testing::Values(BiasedCase{{3, 1, 7}, 2, 8, 7, 0}, BiasedCase{{3, 0, 7, 1}, 2, 8, 12, 0},
                                           BiasedCase{{1}, 1, 4, 1, 0}, BiasedCase{{1, 1}, 4, 4, 3, 0.4},
                                           BiasedCase{{3, 1, 7}, 2, 8, 0, 0.3},
                                           BiasedCase{{5, 5, 5, 2, 2}, 3, 6, 5, 0.5},
                                           BiasedCase{{0, 40, 40, 33}, 4, 16, 64, 0.1}));

}  // namespace
}  // namespace muster::kernels
