// Moments against a plain two-pass computation in float64.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "core/batch/reader.h"
#include "core/training/data_source.h"
#include "tests/core/batch/tensor_dataset.h"
#include "tests/helpers/rounding.h"

namespace muster::training {
namespace {

batch::FeatureMoments moments_of(const data::Dataset& dataset, const std::vector<int64_t>& samples) {
  const at::Tensor pivot = batch::moment_pivot(dataset, 0, samples);
  return batch::finish_moments(batch::sum_moments(dataset, 0, samples, pivot), pivot);
}

// Features of offsets up to 1e7 (where float32 itself steps by 1) and spreads from 1e-3 to 1e3.
at::Tensor hard_features(int64_t frames) {
  at::manual_seed(1);
  const at::Tensor offset = at::tensor({0.0, 1e3, -1e5, 1e7, 0.0, 5.0}, at::kDouble);
  const at::Tensor spread = at::tensor({1.0, 1e-1, 1.0, 1e3, 1e-3, 1e3}, at::kDouble);
  return (offset + spread * at::randn({frames, 6}, at::kDouble)).to(at::kFloat);
}

TEST(Standardizer, EqualsTwoPasses) {
  const at::Tensor values = hard_features(4000);
  const std::vector<int64_t> lengths{0, 1500, 0, 1, 499, 2000};
  const TensorDataset dataset({values}, {lengths});
  const std::vector<int64_t> samples{0, 5, 1, 3};
  const at::Tensor used =
      at::cat({values.slice(0, 2000, 4000), values.slice(0, 0, 1500), values.slice(0, 1500, 1501)}).to(at::kDouble);
  const at::Tensor mean = used.mean(0), deviation = (used - mean).pow(2).mean(0).sqrt();
  const auto moments = moments_of(dataset, samples);
  EXPECT_LT(((moments.mean - mean) / deviation).abs().max().item<double>(), 1e-9);
  EXPECT_LT(((moments.standard_deviation - deviation) / deviation).abs().max().item<double>(), 1e-9);
}

TEST(Standardizer, ConstantFeaturesBecomeZero) {
  // Beside them numbers of all sizes, in steps that are powers of two, so that they and their mean are exact.
  const std::pair<float, int> cases[] = {{0.0f, 0}, {0.1f, -20}, {-3e6f, 20}, {1e-20f, -40}};
  for (const auto& [constant, exponent] : cases) {
    const at::Tensor steps = at::arange(1000).to(at::kFloat).unsqueeze(1) * std::exp2(exponent);
    const at::Tensor values = at::cat({at::full({1000, 1}, constant), steps}, 1);
    const TensorDataset dataset({values}, {{400, 600}});
    const auto moments = moments_of(dataset, {0, 1});
    EXPECT_EQ(moments.standard_deviation[0].item<double>(), 1) << constant;
    const batch::BatchReader reader(dataset, {0}, {moments}, at::kFloat);
    const at::Tensor standardized = reader.read_modality(0, {0, 1}).values;
    EXPECT_TRUE(standardized.select(1, 0).eq(0).all().item<bool>()) << constant;
    // In double precision everything but the last rounding, by half an eps, is far below an eps: their squares, of
    // mean 1, err by one.
    const at::Tensor truth = (at::arange(1000).to(at::kDouble) - 499.5) / std::sqrt((1e6 - 1) / 12);
    const at::Tensor counted = standardized.select(1, 1).to(at::kDouble);
    EXPECT_LE(((counted - truth) / truth).abs().max().item<double>(), 0.51 * eps_of(at::kFloat)) << exponent;
    EXPECT_NEAR(counted.mean().item<double>(), 0, eps_of(at::kFloat)) << exponent;
    EXPECT_NEAR(counted.pow(2).mean().item<double>(), 1, 1.1 * eps_of(at::kFloat)) << exponent;
  }
}

// Corners of float32: a mean that is not a float32, and a deviation whose inverse is none.
TEST(Standardizer, IsExactWhereFloat32IsNot) {
  at::manual_seed(3);
  const at::Tensor noise = at::randn({2000, 1}, at::kDouble);
  const at::Tensor values = at::cat({std::exp2(20.0) + noise, 1e-39 * noise}, 1).to(at::kFloat);
  const at::Tensor exact = values.to(at::kDouble);
  const at::Tensor mean = exact.mean(0), deviation = (exact - mean).pow(2).mean(0).sqrt();
  const TensorDataset dataset({values}, {{2000}});
  const auto moments = moments_of(dataset, {0});
  const auto error = [&](bool in_float32) {
    const batch::BatchReader reader(dataset, {0}, {moments}, at::kFloat, c10::kCPU, in_float32);
    const at::Tensor standardized = reader.read_modality(0, {0}).values;
    // The one pass over the values on a CPU gives the bits of PyTorch's operations, which a GPU takes.
    const at::Tensor by_operations = ((exact - moments.mean) / moments.standard_deviation).to(at::kFloat);
    EXPECT_TRUE(in_float32 || at::equal(standardized, by_operations));
    return (standardized.to(at::kDouble) - (exact - mean) / deviation).abs().amax(0);
  };
  // Values up to 4: one rounding of at most 2 eps; the moments themselves err by less than 1e-9.
  EXPECT_LE(error(false).max().item<double>(), 2 * eps_of(at::kFloat) + 1e-8);
  // What results version 1 did, for runs of that version: a 16th is the distance of two float32 there.
  EXPECT_GT(error(true)[0].item<double>(), 1e-3);
  EXPECT_FALSE(std::isfinite(error(true)[1].item<double>()));
}

TEST(Standardizer, SharesAddUp) {
  const at::Tensor values = hard_features(300);
  const TensorDataset dataset({values}, {{100, 50, 150}});
  const at::Tensor pivot = batch::moment_pivot(dataset, 0, {0, 1, 2});
  const auto a = batch::sum_moments(dataset, 0, {0}, pivot), b = batch::sum_moments(dataset, 0, {1, 2}, pivot),
             none = batch::sum_moments(dataset, 0, {}, pivot);
  EXPECT_EQ(a.frames + b.frames, 300);
  EXPECT_EQ(none.frames, 0);
  const auto joined = batch::finish_moments({a.sums + b.sums + none.sums, 300}, pivot),
             whole = moments_of(dataset, {0, 1, 2});
  EXPECT_TRUE(at::allclose(joined.mean, whole.mean, 1e-12, 0));
  EXPECT_TRUE(at::allclose(joined.standard_deviation, whole.standard_deviation, 1e-12, 0));
}

TEST(Standardizer, FitOverRanksEqualsTheFit) {
  const at::Tensor values = hard_features(500), other = hard_features(130).slice(1, 0, 2).contiguous();
  DataSource source;
  source.dataset = std::make_unique<TensorDataset>(std::vector<at::Tensor>{values, other},
                                                   std::vector<std::vector<int64_t>>{{100, 0, 400}, {30, 100, 0}});
  source.modalities = {1, 0};
  const auto solo = distributed::make_single_process_communicator();
  const auto moments = fit_moments(source, {0, 1, 2}, *solo);
  ASSERT_EQ(moments.size(), 2u);
  const at::Tensor used[] = {other.to(at::kDouble), values.to(at::kDouble)};
  for (int m = 0; m < 2; ++m) {
    const at::Tensor mean = used[m].mean(0), deviation = (used[m] - mean).pow(2).mean(0).sqrt();
    EXPECT_LT(((moments[m].mean - mean) / deviation).abs().max().item<double>(), 1e-9);
    EXPECT_TRUE(at::allclose(moments[m].standard_deviation, deviation, 1e-9, 0));
  }
}

TEST(Standardizer, WaveformsAndTokensHaveNothingToFit) {
  const at::Tensor values = hard_features(20);
  DataSource source;
  source.dataset = std::make_unique<TensorDataset>(
      std::vector<at::Tensor>{at::zeros({5, 1}), values, at::zeros({3, 2})},
      std::vector<std::vector<int64_t>>{{5, 0}, {10, 10}, {0, 3}},
      std::vector<data::ModalityKind>{data::ModalityKind::kWaveform, data::ModalityKind::kFeatures,
                                      data::ModalityKind::kTokens});
  source.modalities = {0, 1, 2};
  const auto solo = distributed::make_single_process_communicator();
  const auto moments = fit_moments(source, {0, 1}, *solo);
  ASSERT_EQ(moments.size(), 3u);
  EXPECT_EQ(moments[0].mean.numel(), 0);
  EXPECT_EQ(moments[2].standard_deviation.numel(), 0);
  EXPECT_LT((moments[1].mean - values.to(at::kDouble).mean(0)).abs().max().item<double>(), 1e-6);
}

TEST(Standardizer, NeedsTheModality) {
  const TensorDataset dataset({at::zeros({3, 2})}, {{0, 3, 0}});
  try {
    batch::moment_pivot(dataset, 0, {0, 2});
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(error.what()).find("'m0'"), std::string::npos);
  }
}

}  // namespace
}  // namespace muster::training
