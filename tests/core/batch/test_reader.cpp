#include "core/batch/reader.h"

#include <gtest/gtest.h>

#include "tests/core/batch/tensor_dataset.h"

namespace muster::batch {
namespace {

using data::ModalityKind;

struct RawData {
  at::Tensor features = at::randn({9, 3}), wave = at::rand({50, 1}) - 0.5,
             tokens = at::tensor({2, 0, 16777215, 1, 5, 0, 7, 1, 3, 1, 9, 0}, at::kFloat).view({6, 2});
  TensorDataset dataset{{features, wave, tokens},
                        {{2, 3, 4}, {20, 0, 30}, {1, 3, 2}},
                        {ModalityKind::kFeatures, ModalityKind::kWaveform, ModalityKind::kTokens}};
};

TEST(BatchReader, GivesTokensAsIntegersAndWaveformsAsTheyAre) {
  const RawData raw;
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const FeatureMoments moments{at::full({3}, 2.0, at::kDouble), at::full({3}, 4.0, at::kDouble)};
    for (const bool in_float32 : {false, true}) {
      const BatchReader reader(raw.dataset, {2, 0, 1}, {no_moments(), moments, no_moments()}, dtype, c10::kCPU,
                               in_float32);
      const Batch batch = reader.read({2, 0}, {0, 1});
      const Ragged &tokens = batch.modalities[0], &features = batch.modalities[1], &wave = batch.modalities[2];
      EXPECT_EQ(tokens.values.scalar_type(), at::kLong);
      EXPECT_TRUE(tokens.values.equal(at::cat({raw.tokens.slice(0, 4, 6), raw.tokens.slice(0, 0, 1)}).to(at::kLong)));
      EXPECT_EQ(tokens.offsets, (std::vector<int64_t>{0, 2, 3}));
      EXPECT_EQ(wave.values.scalar_type(), dtype);
      EXPECT_TRUE(wave.values.equal(at::cat({raw.wave.slice(0, 20, 50), raw.wave.slice(0, 0, 20)}).to(dtype)));
      const at::Tensor rows = at::cat({raw.features.slice(0, 5, 9), raw.features.slice(0, 0, 2)});
      EXPECT_TRUE(at::allclose(features.values, ((rows.to(at::kDouble) - 2) / 4).to(dtype)));
    }
  }
}

TEST(BatchReader, ReadsTheFirstRowsOfEachSample) {
  const RawData raw;
  const BatchReader reader(raw.dataset, {1, 2, 0}, {}, at::kFloat, c10::kCPU, false, {{25}, {2}, {}});
  const Batch batch = reader.read({0, 1, 2}, {0, 1, 2});
  EXPECT_EQ(batch.modalities[0].offsets, (std::vector<int64_t>{0, 20, 20, 45}));
  EXPECT_TRUE(batch.modalities[0].values.equal(raw.wave.slice(0, 0, 45)));
  EXPECT_EQ(batch.modalities[1].offsets, (std::vector<int64_t>{0, 1, 3, 5}));
  EXPECT_TRUE(
      batch.modalities[1].values.equal(at::cat({raw.tokens.slice(0, 0, 3), raw.tokens.slice(0, 4, 6)}).to(at::kLong)));
  EXPECT_TRUE(batch.modalities[2].values.equal(raw.features));
  EXPECT_EQ(reader.length(0, 2), 25);
  EXPECT_EQ(reader.length(0, 0), 20);
  EXPECT_EQ(reader.length(2, 2), 4);
}

// Features that an encoder of the model has made stand beside others that are standardized.
TEST(BatchReader, StandardizesOnlyWhatHasMoments) {
  const at::Tensor made = at::randn({5, 2}), given = at::randn({4, 3});
  const TensorDataset dataset({made, given}, {{2, 3}, {1, 3}});
  const FeatureMoments moments{at::full({3}, 2.0, at::kDouble), at::full({3}, 4.0, at::kDouble)};
  for (const auto dtype : {at::kFloat, at::kDouble})
    for (const bool in_float32 : {false, true}) {
      const BatchReader reader(dataset, {0, 1}, {no_moments(), moments}, dtype, c10::kCPU, in_float32);
      const Batch batch = reader.read({0, 1}, {0, 1});
      EXPECT_TRUE(batch.modalities[0].values.equal(made.to(dtype)));
      EXPECT_TRUE(at::allclose(batch.modalities[1].values, ((given.to(at::kDouble) - 2) / 4).to(dtype)));
    }
}

// An encoder gives no frame of a sample that is too short: it is as if the modality were missing.
TEST(BatchReader, CountsSamplesThatAreTooShortAsMissing) {
  const RawData raw;
  const BatchReader reader(raw.dataset, {1}, {}, at::kFloat, c10::kCPU, false, {{0, 21}});
  EXPECT_EQ(reader.length(0, 0), 0);
  const Batch batch = reader.read({0, 2}, {0, 1});
  EXPECT_EQ(batch.modalities[0].length(0), 0);
  EXPECT_GT(batch.modalities[0].length(1), 20);
  const at::Tensor presence = reader.presence({0, 2});
  EXPECT_FALSE(presence[0][0].item<bool>());
  EXPECT_TRUE(presence[1][0].item<bool>());
}

}  // namespace
}  // namespace muster::batch
