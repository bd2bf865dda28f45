#include "core/batch/batches.h"

#include <gtest/gtest.h>

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
  for (const uint64_t first : {0, 1, 4, 5, 6})
    for (const int64_t microbatches : {0, 1, 5})
      for (int rank = 0; rank < 2; ++rank) {
        const Division division{microbatches, rank, 2};
        TrainingPlan plan(loaded, dataset.index(), {0, 1, 2, 3, 4, 5, 6}), expected(plan);
        ASSERT_EQ(plan.total_steps(), 6u);
        uint64_t step = first;
        for (const auto& batch : Batches(plan, reader, division, first)) {
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

TEST(Batches, MayBeLeftEarly) {
  const TensorDataset dataset({at::zeros({6, 2})}, {{1, 1, 1, 1, 1, 1}});
  const BatchReader reader(dataset, {0}, {}, at::kFloat);
  const auto loaded = experiment(50, 1);
  TrainingPlan plan(loaded, dataset.index(), {0, 1, 2, 3, 4, 5});
  for (const auto& batch : Batches(plan, reader, {}, 0))
    if (batch.number == 2) break;
}

}  // namespace
}  // namespace muster::batch
