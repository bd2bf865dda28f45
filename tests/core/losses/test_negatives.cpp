// The draw of MEM's negatives, which works in blocks and skips what cannot win, against its definition; vectorised
// Philox against the scalar one.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/losses/avel.h"
#include "core/random/philox.h"
#include "core/random/philox_lanes.h"

namespace muster::losses {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

at::Tensor normalized(const at::Tensor& x) { return x / x.norm(2, {1}, true); }

// argmax over columns of another label of S_ij - log(-log u_ij), the smallest of equals; a NaN never beats what came
// before it.
std::vector<int64_t> defined_choice(const at::Tensor& scores, const std::vector<int64_t>& labels, uint32_t direction,
                                    uint64_t seed, uint32_t step) {
  const int64_t rows = scores.size(0);
  const auto score = scores.accessor<double, 2>();
  std::vector<int64_t> chosen(rows, -1);
  for (int64_t i = 0; i < rows; ++i) {
    double best = 0;
    for (int64_t j = 0; j < rows; ++j) {
      if (labels[i] == labels[j]) continue;
      const auto words =
          random::philox4x32(seed, {static_cast<uint32_t>(j), static_cast<uint32_t>(i), direction, step});
      const double noisy = score[i][j] - std::log(-std::log(random::uniform(words[0])));
      if (chosen[i] < 0 || noisy > best) chosen[i] = j, best = noisy;
    }
  }
  return chosen;
}

struct Case {
  at::Tensor queries, candidates, labels;
  std::vector<int64_t> label_values;

  Case(int64_t rows, int64_t dim, int64_t classes) {
    queries = normalized(at::randn({rows, dim}, at::kDouble)).to(at::kFloat);
    candidates = normalized(at::randn({rows, dim}, at::kDouble)).to(at::kFloat);
    labels = at::randint(classes, {rows}, at::kLong);
    labels[0] = 0, labels[1] = 1;
    label_values.assign(labels.const_data_ptr<int64_t>(), labels.const_data_ptr<int64_t>() + rows);
  }
  std::vector<int64_t> draw(const Similarity& similarity, int64_t begin, int64_t end, uint32_t step) const {
    return draw_negatives(queries, candidates, labels, similarity, 1, begin, end, 77, step);
  }
  std::vector<int64_t> expected(const Similarity& similarity, uint32_t step) const {
    const at::Tensor cosines = at::mm(queries.to(at::kDouble), candidates.to(at::kDouble).t());
    return defined_choice(similarity(cosines).contiguous(), label_values, 1, 77, step);
  }
};

TEST(Negatives, AreThoseOfTheDefinition) {
  at::manual_seed(21);
  // From scores that decide nothing to scores that decide everything, and reversed ones.
  for (const double temperature : {1e3, 1.0, 0.07, 1e-3, -0.5})
    for (const int64_t rows : {2, 3, 15, 16, 17, 127, 128, 129, 500}) {
      const Case c(rows, 8, 4);
      const Similarity similarity{Similarity::Kind::kDivisor, at::scalar_tensor(temperature)};
      for (uint32_t step = 0; step < 3; ++step)
        ASSERT_EQ(c.draw(similarity, 0, rows, step), c.expected(similarity, step))
            << temperature << ", " << rows << " rows, step " << step;
    }
}

// All scores 0: the noise alone decides, so each skipped candidate is a test of the bound.
TEST(Negatives, NoiseAloneDecidesBetweenEqualScores) {
  Case c(1500, 4, 7);
  c.queries.zero_();
  const Similarity similarity{Similarity::Kind::kExpScale, at::scalar_tensor(1.0)};
  for (uint32_t step = 0; step < 4; ++step) ASSERT_EQ(c.draw(similarity, 0, 1500, step), c.expected(similarity, step));
}

TEST(Negatives, NanAndInfiniteScores) {
  at::manual_seed(22);
  Case c(100, 4, 3);
  const Similarity similarity{Similarity::Kind::kExpScale, at::scalar_tensor(1.0)};
  c.queries[5].fill_(kNan);
  c.candidates[0].fill_(kNan);   // the first candidate of many rows
  c.candidates[50].fill_(kNan);  // one among others
  c.candidates[60] = c.queries[1] * std::numeric_limits<float>::infinity();
  const auto chosen = c.draw(similarity, 0, 100, 3);
  EXPECT_EQ(chosen, c.expected(similarity, 3));
  for (int64_t i = 0; i < 100; ++i) EXPECT_NE(c.label_values[chosen[i]], c.label_values[i]);
}

TEST(Negatives, AnyRunOfRowsGivesTheSameChoice) {
  at::manual_seed(23);
  const Case c(331, 32, 5);
  const Similarity similarity{Similarity::Kind::kExpScale, at::scalar_tensor(2.7)};
  const auto whole = c.draw(similarity, 0, 331, 9);
  for (const int64_t parts : {2, 3, 8, 331})
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t begin = 331 * p / parts, end = 331 * (p + 1) / parts;
      ASSERT_EQ(c.draw(similarity, begin, end, 9), std::vector<int64_t>(whole.begin() + begin, whole.begin() + end));
    }
}

TEST(PhiloxLanes, AreTheScalarOnes) {
  const uint32_t edges[] = {0, 1, 12345, 0x7FFFFFFF, 0xFFFFFFF8, 0xFFFFFFFF};
  for (const uint64_t seed : {uint64_t{0}, uint64_t{42}, ~uint64_t{0}, uint64_t{0x9E3779B97F4A7C15}})
    for (const uint32_t first : edges)
      for (const uint32_t word : edges) {
        uint32_t all[4 * random::kLanes], firsts[random::kLanes];
        random::philox_lanes(seed, first, word, word ^ 0x55555555u, ~word, all);
        random::philox_first_words(seed, first, word, word ^ 0x55555555u, ~word, firsts);
        for (uint32_t lane = 0; lane < random::kLanes; ++lane) {
          const auto words = random::philox4x32(seed, {first + lane, word, word ^ 0x55555555u, ~word});
          for (int i = 0; i < 4; ++i) ASSERT_EQ(all[4 * lane + i], words[i]);
          ASSERT_EQ(firsts[lane], words[0]);
        }
      }
}

}  // namespace
}  // namespace muster::losses
