// Ragged attention and segment means against PyTorch's own operators, one sample at a time.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/kernels/attention.h"
#include "tests/core/kernels/plain_attention.h"
#include "tests/helpers/rounding.h"

namespace muster::kernels {
namespace {

double difference(const at::Tensor& a, const at::Tensor& b) {
  return a.numel() == 0 ? 0 : (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
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
  EXPECT_LT(difference(gradient_of(query_a), gradient_of(query_b)), 1e-12);
  EXPECT_LT(difference(gradient_of(key_value_a), gradient_of(key_value_b)), 1e-12);

  // A gradient that is not contiguous, as an expanded sum's is.
  const at::Tensor query_e = leaf(query);
  attention(query_e, key_value, q, c, heads).sum().backward();
  const at::Tensor query_f = leaf(query);
  (attention(query_f, key_value, q, c, heads) * at::ones_like(cotangent)).sum().backward();
  EXPECT_EQ(difference(query_e.grad(), query_f.grad()), 0);

  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto rounded = [dtype = dtype](const at::Tensor& x) { return x.to(dtype); };
    struct Result {
      at::Tensor output, query, key_value;
    };
    const auto differentiated = [&, heads = heads](const auto& function, at::ScalarType in) {
      const at::Tensor own_query = leaf(rounded(query).to(in)), own_key_value = leaf(rounded(key_value).to(in));
      const at::Tensor output = function(own_query, own_key_value, q, c, heads);
      if (output.requires_grad()) (output * rounded(cotangent).to(in)).sum().backward();
      return Result{output.detach(), gradient_of(own_query), gradient_of(own_key_value)};
    };
    const Result ours = differentiated(attention, dtype), theirs = differentiated(plain_attention, dtype),
                 truth = differentiated(plain_attention, at::kDouble);
    EXPECT_EQ(ours.output.scalar_type(), dtype);
    const std::string what = c10::toString(dtype);
    expect_as_exact_as_pytorch(ours.output, theirs.output, truth.output, 1, what + ", output");
    expect_as_exact_as_pytorch(ours.query, theirs.query, truth.query, 1, what + ", gradient of the queries");
    expect_as_exact_as_pytorch(ours.key_value, theirs.key_value, truth.key_value, 1,
                               what + ", gradient of the context");
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
  const at::Tensor expected = plain_segment_mean(plain, offsets), actual = segment_mean(values, offsets);
  EXPECT_LT(difference(actual, expected), 1e-15);
  const at::Tensor cotangent = at::randn({5, 5}, at::kDouble);
  (expected * cotangent).sum().backward();
  (actual * cotangent).sum().backward();
  EXPECT_LT(difference(values.grad(), plain.grad()), 1e-15);
  EXPECT_EQ(segment_mean(at::zeros({0, 5}), {0}).sizes(), (std::vector<int64_t>{0, 5}));
}

}  // namespace
}  // namespace muster::kernels
