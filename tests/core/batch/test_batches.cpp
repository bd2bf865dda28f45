#include "core/batch/batches.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "tests/core/batch/tensor_dataset.h"

namespace muster::batch {
namespace {

config::LoadedExperiment experiment(uint32_t epochs, uint32_t batch_size) {
  config::LoadedExperiment loaded;
  loaded.experiment.mutable_training()->set_epochs(epochs);
  loaded.experiment.mutable_training()->set_batch_size(batch_size);
  loaded.experiment.mutable_training()->set_sampling(config::Training::SHUFFLE);
  loaded.experiment.set_seed(3);
  return loaded;
}

// Seven samples in batches of 3: two whole ones and a short one in each of two epochs.
TEST(Batches, AreThoseOfThePlanWhateverStepTheyBeginAt) {
  at::manual_seed(1);
  const TensorDataset dataset({at::randn({13, 3})}, {{2, 0, 3, 1, 3, 2, 2}});
  const BatchReader reader(dataset, {0}, {}, at::kDouble);
  const auto loaded = experiment(2, 3);
  const ModalityDropout no_dropout(loaded.experiment, {"audio"});
  for (const uint64_t first : {0, 1, 4, 5, 6})
    for (const int64_t microbatches : {0, 1, 5})
      for (int rank = 0; rank < 2; ++rank) {
        const Division division{microbatches, rank, 2};
        TrainingPlan plan(loaded, dataset.index(), {0, 1, 2, 3, 4, 5, 6}), expected(plan);
        ASSERT_EQ(plan.total_steps(), 6u);
        uint64_t step = first;
        for (const auto& batch : Batches(plan, reader, division, first, no_dropout)) {
          SCOPED_TRACE("step " + std::to_string(step) + ", rank " + std::to_string(rank));
          EXPECT_EQ(batch.number, step);
          EXPECT_EQ(batch.epoch, step < 3 ? 1 : 2);
          EXPECT_EQ(batch.global.samples, expected.samples(step));
          const auto now = read_batch(reader, expected.samples(step), division, step);
          EXPECT_TRUE(batch.global.labels.equal(now.global.labels));
          EXPECT_TRUE(batch.global.presence.equal(now.global.presence));
          ASSERT_EQ(batch.microbatches.size(), now.microbatches.size());
          for (size_t m = 0; m < now.microbatches.size(); ++m) {
            EXPECT_EQ(batch.microbatches[m].samples, now.microbatches[m].samples);
            EXPECT_EQ(batch.microbatches[m].batch_index, now.microbatches[m].batch_index);
            EXPECT_TRUE(batch.microbatches[m].modalities[0].values.equal(now.microbatches[m].modalities[0].values));
          }
          ++step;
        }
        EXPECT_EQ(step, 6u);
      }
}

// 400 samples with two modalities, of which some lack one, and one modality that is never lost.
TEST(Batches, ModalitiesAreDroppedWithTheirProbabilityAndNeverAllOfASample) {
  std::vector<std::vector<int64_t>> lengths(3, std::vector<int64_t>(400, 1));
  for (int64_t i = 0; i < 400; i += 4) lengths[0][i] = lengths[2][i] = 0;  // these have only the second
  const TensorDataset dataset({at::randn({300, 1}), at::randn({400, 1}), at::randn({300, 1})}, lengths);
  const BatchReader reader(dataset, {0, 1, 2}, {}, at::kFloat);
  auto loaded = experiment(2, 400);
  auto& augment = *loaded.experiment.mutable_data()->mutable_augment();
  augment.set_modality_dropout(0.4);
  augment.add_modalities("a");
  augment.add_modalities("b");
  const ModalityDropout dropout(loaded.experiment, {"a", "b", "c"});
  std::vector<int64_t> all(400);
  std::iota(all.begin(), all.end(), 0);
  TrainingPlan plan(loaded, dataset.index(), all);
  std::vector<at::Tensor> left;
  for (const Division& division : {Division{1, 0, 1}, Division{5, 0, 1}})
    for (const auto& batch : Batches(plan, reader, division, 0, dropout)) {
      const at::Tensor before = reader.presence(batch.global.samples), after = batch.global.presence;
      left.push_back(after);
      EXPECT_TRUE(after.any(1).all().item<bool>());
      EXPECT_FALSE((after & ~before).any().item<bool>());
      EXPECT_TRUE(after.select(1, 2).equal(before.select(1, 2)));
      const at::Tensor had_all = before.all(1);
      for (int64_t m = 0; m < 2; ++m)
        EXPECT_NEAR(after.select(1, m).masked_select(had_all).to(at::kDouble).mean().item<double>(), 0.6, 0.1);
      // Readers leave out what is lost, and nothing else.
      int64_t row = 0;
      for (const auto& microbatch : batch.microbatches)
        for (int64_t i = 0; i < microbatch.size(); ++i, ++row)
          for (int64_t m = 0; m < 3; ++m) EXPECT_EQ(microbatch.modalities[m].length(i) > 0, after[row][m].item<bool>());
    }
  ASSERT_EQ(left.size(), 4u);  // two steps of each division
  EXPECT_TRUE(left[0].equal(left[2]));
  EXPECT_TRUE(left[1].equal(left[3]));
  EXPECT_FALSE(left[0].equal(left[1]));
}

TEST(Batches, MayBeLeftEarly) {
  const TensorDataset dataset({at::zeros({6, 2})}, {{1, 1, 1, 1, 1, 1}});
  const BatchReader reader(dataset, {0}, {}, at::kFloat);
  const auto loaded = experiment(50, 1);
  TrainingPlan plan(loaded, dataset.index(), {0, 1, 2, 3, 4, 5});
  for (const auto& batch : Batches(plan, reader, {}, 0, ModalityDropout(loaded.experiment, {"audio"})))
    if (batch.number == 2) break;
}

}  // namespace
}  // namespace muster::batch
