// Losses against their formulas in plain loops, and against finite differences.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>
#include <limits>

#include "core/losses/alignment.h"
#include "core/losses/avel.h"

namespace muster::losses {
namespace {

at::Tensor unit(const at::Tensor& x) { return x / x.norm(2, {1}, true); }

at::Tensor random_unit(int64_t rows, int64_t dim) { return unit(at::randn({rows, dim}, at::kDouble)); }

Similarity exp_scale(double temperature) {
  return {Similarity::Kind::kExpScale, at::scalar_tensor(temperature, at::kDouble)};
}
Similarity divisor(double temperature) {
  return {Similarity::Kind::kDivisor, at::scalar_tensor(temperature, at::kDouble)};
}

double dot(const at::Tensor& a, int64_t i, const at::Tensor& b, int64_t j) {
  double sum = 0;
  for (int64_t k = 0; k < a.size(1); ++k) sum += a[i][k].item<double>() * b[j][k].item<double>();
  return sum;
}

// -log softmax(row)[j]
double surprise(const std::vector<double>& row, int64_t j) {
  double sum = 0;
  for (const double value : row) sum += std::exp(value - row[j]);
  return std::log(sum);
}

double plain_avel(const at::Tensor& audio, const at::Tensor& video, const std::vector<int64_t>& labels,
                  const std::function<double(double)>& similarity, bool row_mean) {
  const int64_t n = audio.size(0);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> audio_to_video, video_to_audio;
    double same = 0;
    for (int64_t j = 0; j < n; ++j) {
      audio_to_video.push_back(similarity(dot(audio, i, video, j)));
      video_to_audio.push_back(similarity(dot(video, i, audio, j)));
      same += labels[j] == labels[i];
    }
    for (int64_t j = 0; j < n; ++j)
      if (labels[j] == labels[i])
        total += (surprise(audio_to_video, j) + surprise(video_to_audio, j)) / (row_mean ? same : 1);
  }
  return total / (2.0 * static_cast<double>(n));
}

// Central differences of `loss` in every element of x, against autograd.
void expect_gradient(const std::function<at::Tensor(const at::Tensor&)>& loss, const at::Tensor& x,
                     double tolerance = 1e-8) {
  const at::Tensor leaf = x.detach().clone().requires_grad_();
  loss(leaf).backward();
  const double h = 1e-5;
  at::Tensor flat = x.detach().clone().reshape({-1});
  for (int64_t i = 0; i < flat.numel(); ++i) {
    const auto at_offset = [&](double offset) {
      at::Tensor moved = flat.clone();
      moved[i] += offset;
      return loss(moved.view(x.sizes())).item<double>();
    };
    ASSERT_NEAR(leaf.grad().reshape({-1})[i].item<double>(), (at_offset(h) - at_offset(-h)) / (2 * h), tolerance) << i;
  }
}

TEST(Avel, EqualsItsFormula) {
  at::manual_seed(1);
  const std::vector<std::vector<int64_t>> label_sets{{0, 1, 1, 2, 0, 2, 1}, {3, 3, 3, 3}, {0, 1, 2, 3}, {5}};
  for (const auto& labels : label_sets) {
    const at::Tensor audio = random_unit(labels.size(), 6), video = random_unit(labels.size(), 6);
    const at::Tensor label_tensor = at::tensor(labels, at::kLong);
    for (const bool row_mean : {true, false}) {
      const auto targets = row_mean ? AvelTargets::kRowMean : AvelTargets::kRowSum;
      EXPECT_NEAR(avel_loss(audio, video, label_tensor, exp_scale(1.3), targets).item<double>(),
                  plain_avel(
                      audio, video, labels, [](double c) { return c * std::exp(1.3); }, row_mean),
                  1e-12);
      EXPECT_NEAR(avel_loss(audio, video, label_tensor, divisor(0.07), targets).item<double>(),
                  plain_avel(
                      audio, video, labels, [](double c) { return c / 0.07; }, row_mean),
                  1e-12);
    }
  }
}

TEST(Avel, GradientsAreThoseOfTheValue) {
  at::manual_seed(2);
  const at::Tensor audio = random_unit(5, 3), video = random_unit(5, 3),
                   labels = at::tensor({0, 1, 0, 2, 1}, at::kLong);
  for (const auto targets : {AvelTargets::kRowMean, AvelTargets::kRowSum}) {
    expect_gradient([&](const at::Tensor& x) { return avel_loss(x, video, labels, exp_scale(1), targets); }, audio);
    expect_gradient([&](const at::Tensor& x) { return avel_loss(audio, x, labels, divisor(0.5), targets); }, video);
    for (const auto kind : {Similarity::Kind::kExpScale, Similarity::Kind::kDivisor})
      expect_gradient(
          [&](const at::Tensor& t) {
            return avel_loss(audio, video, labels, {kind, t}, targets);
          },
          at::scalar_tensor(0.8, at::kDouble));
  }
}

double plain_alignment(const std::vector<at::Tensor>& embeddings, const at::Tensor& presence, double temperature) {
  double total = 0;
  int pairs = 0;
  for (size_t p = 0; p < embeddings.size(); ++p)
    for (size_t q = p + 1; q < embeddings.size(); ++q, ++pairs) {
      std::vector<int64_t> both;
      for (int64_t i = 0; i < presence.size(0); ++i)
        if (presence[i][p].item<bool>() && presence[i][q].item<bool>()) both.push_back(i);
      double sum = 0;
      for (size_t i = 0; i < both.size(); ++i) {
        std::vector<double> forward, backward;
        for (const int64_t j : both) {
          forward.push_back(dot(embeddings[p], both[i], embeddings[q], j) / temperature);
          backward.push_back(dot(embeddings[q], both[i], embeddings[p], j) / temperature);
        }
        sum += surprise(forward, i) + surprise(backward, i);
      }
      if (!both.empty()) total += sum / (2.0 * static_cast<double>(both.size()));
    }
  return total / pairs;
}

TEST(Alignment, EqualsItsFormulaWithMissingModalities) {
  at::manual_seed(3);
  const std::vector<at::Tensor> embeddings{random_unit(6, 4), random_unit(6, 4), random_unit(6, 4)};
  const at::Tensor complete = at::ones({6, 3}, at::kBool);
  at::Tensor some = complete.clone(), no_pair = complete.clone(), one_sample = complete.clone();
  some[0][1] = false, some[3][0] = false, some[3][2] = false, some[5][2] = false;
  no_pair.slice(0, 0, 3).select(1, 0).fill_(false), no_pair.slice(0, 3, 6).select(1, 1).fill_(false);
  one_sample.slice(0, 1, 6).select(1, 2).fill_(false);
  for (const auto& presence : {complete, some, no_pair, one_sample}) {
    EXPECT_NEAR(alignment_loss(embeddings, presence, 0.2).item<double>(), plain_alignment(embeddings, presence, 0.2),
                1e-12);
    expect_gradient(
        [&](const at::Tensor& x) {
          return alignment_loss({embeddings[0], x, embeddings[2]}, presence, 0.5);
        },
        embeddings[1]);
  }
}

TEST(Alignment, WithoutAnyPairIsZero) {
  const at::Tensor presence = at::tensor({1, 0, 0, 1}).view({2, 2}).to(at::kBool);
  EXPECT_EQ(alignment_loss({random_unit(2, 4), random_unit(2, 4)}, presence, 0.1).item<double>(), 0);
}

TEST(Alignment, IgnoresRowsOfMissingModalities) {
  at::manual_seed(4);
  std::vector<at::Tensor> embeddings{random_unit(4, 3), random_unit(4, 3)};
  at::Tensor presence = at::ones({4, 2}, at::kBool);
  presence[2][0] = false;
  const double value = alignment_loss(embeddings, presence, 0.3).item<double>();
  embeddings[0][2].fill_(std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(alignment_loss(embeddings, presence, 0.3).item<double>(), value);
}

struct Draws : ::testing::Test {
  Draws() { at::manual_seed(5); }
  std::vector<int64_t> label_values{0, 1, 1, 2, 0, 2, 3, 1};
  at::Tensor labels = at::tensor(label_values, at::kLong);
  at::Tensor queries = random_unit(8, 4), candidates = random_unit(8, 4);
  Similarity similarity = exp_scale(0.7);
  std::vector<int64_t> draw(int64_t begin, int64_t end, uint32_t step, uint32_t direction = 0,
                            uint64_t seed = 1) const {
    return draw_negatives(queries, candidates, labels, similarity, direction, begin, end, seed, step);
  }
};

TEST_F(Draws, FrequenciesAreTheSoftmax) {
  constexpr int kDraws = 20000;
  std::vector<std::vector<double>> counts(8, std::vector<double>(8, 0));
  for (int step = 0; step < kDraws; ++step) {
    const auto chosen = draw(0, 8, step);
    for (int64_t i = 0; i < 8; ++i) ++counts[i][chosen[i]];
  }
  for (int64_t i = 0; i < 8; ++i) {
    double sum = 0, chi_square = 0;
    std::vector<double> weights(8, 0);
    for (int64_t j = 0; j < 8; ++j) {
      if (label_values[j] == label_values[i]) {
        EXPECT_EQ(counts[i][j], 0) << "an own label was drawn";
      } else {
        sum += weights[j] = std::exp(dot(queries, i, candidates, j) * std::exp(0.7));
      }
    }
    for (int64_t j = 0; j < 8; ++j)
      if (weights[j] > 0)
        chi_square += std::pow(counts[i][j] - kDraws * weights[j] / sum, 2) / (kDraws * weights[j] / sum);
    EXPECT_LT(chi_square, 24.3) << "row "
                                << i;  // 0.1 % level of chi-square with 7 degrees of freedom; there are at most 6
  }
}

TEST_F(Draws, DoNotDependOnTheRange) {
  for (uint32_t step = 0; step < 50; ++step) {
    const auto whole = draw(0, 8, step);
    for (int64_t begin = 0; begin < 8; ++begin)
      for (int64_t end = begin + 1; end <= 8; ++end)
        ASSERT_EQ(draw(begin, end, step), std::vector<int64_t>(whole.begin() + begin, whole.begin() + end));
  }
}

TEST_F(Draws, DifferByDirectionSeedAndStep) {
  int same_direction = 0, same_seed = 0, same_step = 0;
  for (uint32_t step = 0; step < 500; ++step) {
    const auto chosen = draw(0, 8, step);
    same_direction += chosen == draw(0, 8, step, 1);
    same_seed += chosen == draw(0, 8, step, 0, 2);
    same_step += chosen == draw(0, 8, step + 1);
  }
  EXPECT_LT(std::max({same_direction, same_seed, same_step}), 10);
}

TEST_F(Draws, OneLabelGivesNone) {
  labels = at::full({8}, 2, at::kLong);
  EXPECT_TRUE(draw(0, 8, 0).empty());
  EXPECT_TRUE(draw(3, 5, 0).empty());
}

TEST_F(Draws, NanScoresStillGiveAValidColumn) {
  queries.fill_(std::numeric_limits<double>::quiet_NaN());
  const auto chosen = draw(0, 8, 0);
  ASSERT_EQ(chosen.size(), 8u);
  for (int64_t i = 0; i < 8; ++i) EXPECT_NE(label_values[chosen[i]], label_values[i]);
}

TEST_F(Draws, FollowTheScoreWhenItIsSharp) {
  similarity = divisor(1e-4);
  const auto chosen = draw(0, 8, 3);
  for (int64_t i = 0; i < 8; ++i) {
    int64_t best = -1;
    for (int64_t j = 0; j < 8; ++j)
      if (label_values[j] != label_values[i] &&
          (best < 0 || dot(queries, i, candidates, j) > dot(queries, i, candidates, best)))
        best = j;
    EXPECT_EQ(chosen[i], best);
  }
}

}  // namespace
}  // namespace muster::losses
