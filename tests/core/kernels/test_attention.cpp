// Ragged attention and segment means against PyTorch's own operators, one sample at a time.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/kernels/attention.h"

namespace muster::kernels {
namespace {

std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

at::Tensor leaf(const at::Tensor& x) { return x.detach().clone().requires_grad_(); }

double difference(const at::Tensor& a, const at::Tensor& b) {
  return a.numel() == 0 ? 0 : (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

at::Tensor plain_attention(const at::Tensor& query, const at::Tensor& key_value, const std::vector<int64_t>& q,
                           const std::vector<int64_t>& c, int64_t heads) {
  const int64_t dim = query.size(1);
  std::vector<at::Tensor> outputs;
  for (size_t s = 0; s + 1 < q.size(); ++s) {
    const auto per_head = [&](const at::Tensor& rows) {  // [1, heads, rows, dim / heads]
      return rows.reshape({rows.size(0), heads, dim / heads}).permute({1, 0, 2}).unsqueeze(0);
    };
    const at::Tensor queries = query.slice(0, q[s], q[s + 1]);
    const at::Tensor context = key_value.slice(0, c[s], c[s + 1]);
    if (queries.size(0) == 0 || context.size(0) == 0) {
      outputs.push_back(at::zeros_like(queries));
      continue;
    }
    const at::Tensor output = at::scaled_dot_product_attention(per_head(queries), per_head(context.slice(1, 0, dim)),
                                                               per_head(context.slice(1, dim, 2 * dim)));
    outputs.push_back(output.squeeze(0).permute({1, 0, 2}).reshape({-1, dim}));
  }
  return at::cat(outputs, 0);
}

struct Case {
  std::vector<int64_t> query_lengths, context_lengths;
  int64_t heads, dim;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.heads << " heads, dim " << c.dim; }

class Attention : public ::testing::TestWithParam<Case> {};

TEST_P(Attention, EqualsScaledDotProductAttention) {
  const auto& [query_lengths, context_lengths, heads, dim] = GetParam();
  at::manual_seed(1);
  const auto q = offsets_of(query_lengths), c = offsets_of(context_lengths);
  const at::Tensor query = at::randn({q.back(), dim}, at::kDouble),
                   key_value = at::randn({c.back(), 2 * dim}, at::kDouble);
  const at::Tensor cotangent = at::randn({q.back(), dim}, at::kDouble);
  const at::Tensor query_a = leaf(query), key_value_a = leaf(key_value), query_b = leaf(query),
                   key_value_b = leaf(key_value);

  const at::Tensor expected = plain_attention(query_b, key_value_b, q, c, heads);
  const at::Tensor actual = attention(query_a, key_value_a, q, c, heads);
  EXPECT_LT(difference(actual, expected), 1e-13);
  (actual * cotangent).sum().backward();
  if (expected.requires_grad()) (expected * cotangent).sum().backward();
  const auto gradient = [](const at::Tensor& x) { return x.grad().defined() ? x.grad() : at::zeros_like(x); };
  EXPECT_LT(difference(gradient(query_a), gradient(query_b)), 1e-12);
  EXPECT_LT(difference(gradient(key_value_a), gradient(key_value_b)), 1e-12);

  // A gradient that is not contiguous, as an expanded sum's is.
  const at::Tensor query_e = leaf(query);
  attention(query_e, key_value, q, c, heads).sum().backward();
  const at::Tensor query_f = leaf(query);
  (attention(query_f, key_value, q, c, heads) * at::ones_like(cotangent)).sum().backward();
  EXPECT_EQ(difference(query_e.grad(), query_f.grad()), 0);

  for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 2e-5}, std::pair{at::kBFloat16, 0.1}}) {
    const at::Tensor query_c = leaf(query.to(dtype)), key_value_c = leaf(key_value.to(dtype));
    const at::Tensor output = attention(query_c, key_value_c, q, c, heads);
    EXPECT_EQ(output.scalar_type(), dtype);
    EXPECT_LT(difference(output, expected), tolerance);
    (output * cotangent.to(dtype)).sum().backward();
    EXPECT_LT(difference(query_c.grad(), gradient(query_b)), 2 * tolerance);
    EXPECT_LT(difference(key_value_c.grad(), gradient(key_value_b)), 2 * tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Lengths, Attention,
                         ::testing::Values(Case{{3, 5, 2}, {4, 1, 7}, 1, 6}, Case{{3, 5, 2}, {4, 1, 7}, 2, 6},
                                           Case{{1}, {1}, 4, 8}, Case{{1, 1, 1}, {1, 1, 1}, 2, 4},
                                           Case{{2, 3, 1}, {0, 4, 0}, 2, 4}, Case{{2, 3}, {0, 0}, 2, 4},
                                           Case{{0, 3, 0}, {2, 0, 5}, 2, 4}, Case{{0, 2}, {3, 3}, 2, 4},
                                           Case{{40, 1, 17}, {63, 90, 2}, 4, 32}, Case{{2}, {3}, 6, 6},
                                           // Runs of equal lengths, which end where either length changes, or where
                                           // there would be too many scores at once.
                                           Case{{3, 3, 3, 2, 2, 0, 2, 2}, {4, 4, 5, 5, 5, 5, 5, 5}, 2, 8},
                                           Case{{60, 60, 60, 60, 60}, {300, 300, 300, 300, 300}, 4, 16},
                                           // One query each.
                                           Case{{1, 1, 1, 1}, {0, 3, 200, 3}, 4, 24}, Case{{1, 1}, {70, 9}, 3, 33},
                                           Case{{1, 1}, {0, 0}, 2, 4}));

TEST(Attention, OfNoSamples) {
  const at::Tensor output = attention(at::zeros({0, 4}), at::zeros({0, 8}), {0}, {0}, 2);
  EXPECT_EQ(output.sizes(), (std::vector<int64_t>{0, 4}));
}

TEST(Attention, SurvivesLargeScores) {
  const at::Tensor query = at::full({2, 4}, 1e3), key_value = at::full({3, 8}, 1e3);
  EXPECT_LT(difference(attention(query, key_value, {0, 2}, {0, 3}, 2), at::full({2, 4}, 1e3)), 1e-3);
}

TEST(SegmentMean, EqualsMeanPerSample) {
  at::manual_seed(2);
  const auto offsets = offsets_of({3, 0, 1, 7, 0});
  const at::Tensor values = leaf(at::randn({11, 5}, at::kDouble)), plain = leaf(values);
  std::vector<at::Tensor> means;
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    means.push_back(offsets[s] == offsets[s + 1] ? at::zeros({5}, at::kDouble)
                                                 : plain.slice(0, offsets[s], offsets[s + 1]).mean(0));
  const at::Tensor expected = at::stack(means), actual = segment_mean(values, offsets);
  EXPECT_LT(difference(actual, expected), 1e-15);
  const at::Tensor cotangent = at::randn({5, 5}, at::kDouble);
  (expected * cotangent).sum().backward();
  (actual * cotangent).sum().backward();
  EXPECT_LT(difference(values.grad(), plain.grad()), 1e-15);
  EXPECT_EQ(segment_mean(at::zeros({0, 5}), {0}).sizes(), (std::vector<int64_t>{0, 5}));
}

}  // namespace
}  // namespace muster::kernels
