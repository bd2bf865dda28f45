#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "core/kernels/dropout.h"
#include "core/random/philox.h"
#include "tests/helpers/rounding.h"

namespace muster::kernels {
namespace {

const DropoutKey kKey{1, 0, random::kDropout};

at::Tensor mask(int64_t rows, int64_t dim, double p, int64_t global_row, const DropoutKey& key) {
  return dropout(at::ones({rows, dim}, at::kDouble), p, {0, rows}, {global_row}, key).ne(0);
}

// The known answers of Random123 (kat_vectors, philox4x32-10).
TEST(Philox, GivesTheKnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(random::philox4x32(0, {0, 0, 0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t f = 0xffffffff;
  EXPECT_EQ(random::philox4x32(~uint64_t{0}, {f, f, f, f}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(random::philox4x32(0x299f31d0a4093822, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The vectorised generator against the plain one, over lengths around the sizes it works in.
TEST(Dropout, FollowsItsRule) {
  for (const int64_t elements : {1, 3, 4, 5, 63, 64, 65, 127, 1000}) {
    const DropoutKey key{(uint64_t{5} << 40) + 3, 7, 40};
    const at::Tensor kept = mask(elements, 1, 0.37, 123, key);
    for (int64_t e = 0; e < elements; ++e) {
      const auto words = random::philox4x32(key.seed, {static_cast<uint32_t>(e / 4), 123, key.site, key.step});
      ASSERT_EQ(kept[e][0].item<bool>(), random::uniform(words[e % 4]) >= 0.37)
          << elements << " elements, element " << e;
    }
  }
}

TEST(Dropout, KeepsTheRightShareAndScales) {
  constexpr int64_t n = 200000;
  for (const double p : {0.01, 0.1, 0.5, 0.9, 0.999}) {
    const at::Tensor y = dropout(at::full({1000, 200}, 3.0, at::kDouble), p, {0, 1000}, {0}, kKey);
    const double kept = y.ne(0).sum().item<double>() / n;
    EXPECT_LT(std::abs(kept - (1 - p)), 5 * std::sqrt(p * (1 - p) / n)) << p;
    const at::Tensor values = y.masked_select(y.ne(0));
    EXPECT_LT((values - 3 / (1 - p)).abs().max().item<double>(), 1e-12 / (1 - p)) << p;
  }
}

TEST(Dropout, MasksAreIndependent) {
  constexpr double p = 0.3;
  constexpr int64_t n = 40000;
  const at::Tensor first = mask(200, 200, p, 5, {1, 2, 20});
  const double chance = (1 - p) * (1 - p) + p * p, tolerance = 5 * std::sqrt(chance * (1 - chance) / n);
  const std::vector<std::pair<const char*, at::Tensor>> others{
      {"row", mask(200, 200, p, 6, {1, 2, 20})},
      {"step", mask(200, 200, p, 5, {1, 3, 20})},
      {"site", mask(200, 200, p, 5, {1, 2, 21})},
      {"seed", mask(200, 200, p, 5, {2, 2, 20})},
      {"swapped", mask(200, 200, p, 20, {1, 2, 5})},
      {"neighbours", first.roll(1, 1)},
      {"seed's high half", mask(200, 200, p, 5, {1 + (uint64_t{1} << 32), 2, 20})}};
  for (const auto& [what, other] : others)
    EXPECT_LT(std::abs(first.eq(other).sum().item<double>() / n - chance), tolerance) << what;
  EXPECT_TRUE(first.equal(mask(200, 200, p, 5, {1, 2, 20}))) << "the same key must give the same mask";
}

TEST(Dropout, DoesNotDependOnGrouping) {
  const std::vector<int64_t> lengths{3, 1, 0, 17, 2, 5}, rows{9, 0, 4, 1, 7, 2};
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  at::manual_seed(1);
  const at::Tensor x = at::randn({offsets.back(), 11}, at::kDouble);
  const at::Tensor whole = dropout(x, 0.4, offsets, rows, kKey);
  for (size_t s = 0; s < lengths.size(); ++s) {
    const at::Tensor alone = dropout(x.slice(0, offsets[s], offsets[s + 1]), 0.4, {0, lengths[s]}, {rows[s]}, kKey);
    EXPECT_TRUE(alone.equal(whole.slice(0, offsets[s], offsets[s + 1]))) << s;
  }
  // A prefix of a sample's rows has the prefix of its mask: MIAR's last layer computes the first row only.
  EXPECT_TRUE(dropout(x.slice(0, 4, 5), 0.4, {0, 1}, {rows[3]}, kKey).equal(whole.slice(0, 4, 5)));
}

TEST(Dropout, BackwardUsesTheSameMask) {
  at::manual_seed(1);
  const at::Tensor x = at::randn({6, 33}, at::kDouble).requires_grad_();
  const std::vector<int64_t> offsets{0, 2, 6}, rows{3, 8};
  const at::Tensor y = dropout(x, 0.25, offsets, rows, kKey), cotangent = at::randn({6, 33}, at::kDouble);
  y.backward(cotangent);
  EXPECT_TRUE(at::allclose(x.grad(), cotangent * y.detach().ne(0) / 0.75, 1e-14, 0));
  // sum() hands back an expanded gradient.
  const at::Tensor z = x.detach().clone().requires_grad_();
  dropout(z, 0.25, offsets, rows, kKey).sum().backward();
  EXPECT_TRUE(at::allclose(z.grad(), y.detach().ne(0).to(at::kDouble) / 0.75, 1e-14, 0));
}

TEST(Dropout, ADroppedInfinityIsZero) {
  for (const double value : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    const at::Tensor y = dropout(at::full({64, 64}, value, at::kDouble), 0.5, {0, 64}, {0}, kKey);
    EXPECT_TRUE(y.eq(0).logical_or(y.isfinite().logical_not()).all().item<bool>());
    EXPECT_NEAR(y.eq(0).sum().item<double>() / 4096, 0.5, 0.05);
  }
}

TEST(Dropout, DtypesShareOneMask) {
  at::manual_seed(1);
  const at::Tensor x = at::randn({50, 30}, at::kDouble);
  const at::Tensor reference = dropout(x, 0.3, {0, 20, 50}, {4, 2}, kKey);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor y = dropout(x.to(dtype), 0.3, {0, 20, 50}, {4, 2}, kKey);
    EXPECT_EQ(y.scalar_type(), dtype);
    EXPECT_TRUE(y.ne(0).equal(reference.ne(0)));
    // The input, the factor and their product are rounded, each by half an eps.
    EXPECT_TRUE(at::allclose(y.to(at::kDouble), reference, 2 * eps_of(dtype), 0));
  }
}

TEST(Dropout, OfStridedAndEmptyInput) {
  at::manual_seed(1);
  const at::Tensor x = at::randn({12, 10}, at::kDouble), strided = x.t();
  EXPECT_TRUE(dropout(strided, 0.5, {0, 10}, {1}, kKey).equal(dropout(strided.contiguous(), 0.5, {0, 10}, {1}, kKey)));
  EXPECT_EQ(dropout(at::zeros({0, 7}), 0.5, {0}, {}, kKey).sizes(), (std::vector<int64_t>{0, 7}));
  EXPECT_EQ(dropout_rows(at::zeros({0, 7}), 0.5, {}, kKey).sizes(), (std::vector<int64_t>{0, 7}));
}

TEST(Dropout, RateZeroIsTheInput) {
  const at::Tensor x = at::randn({3, 4});
  EXPECT_TRUE(dropout(x, 0, {0, 3}, {0}, kKey).is_same(x));
}

TEST(Dropout, RowsAreSamplesOfOneRow) {
  const at::Tensor x = at::ones({4, 9}, at::kDouble);
  EXPECT_TRUE(dropout_rows(x, 0.5, {3, 1, 4, 0}, kKey).equal(dropout(x, 0.5, {0, 1, 2, 3, 4}, {3, 1, 4, 0}, kKey)));
}

}  // namespace
}  // namespace muster::kernels
