#include <gtest/gtest.h>

#include <google/protobuf/util/message_differencer.h>

#include "core/config/compare.h"
#include "core/config/load.h"

namespace muster::config {
namespace {

Experiment small() {
  return parse_stored(
      "# proto-file: core/config/experiment.proto\n# proto-message: muster.config.Experiment\n"
      "name: 'x' data { synthetic { kind: REGRESSION } modalities: ['text', 'audio'] } miar {}",
      "x");
}

TEST(Compare, NamesEveryValueThatDiffers) {
  const Experiment before = small();
  EXPECT_TRUE(differences(before, before).empty());
  Experiment after = before;
  after.set_seed(7);
  after.mutable_optimizer()->set_learning_rate(0.5);
  after.mutable_data()->add_modalities("vision");
  after.mutable_training()->set_precision(Training::BF16);
  std::vector<std::string> found;
  for (const auto& d : differences(before, after)) found.push_back(d.path + ": " + d.before + " -> " + d.after);
  EXPECT_EQ(found, (std::vector<std::string>{
                       "seed: 1 -> 7", "data.modalities: [\"text\", \"audio\"] -> [\"text\", \"audio\", \"vision\"]",
                       "optimizer.learning_rate: 1e-4 -> 0.5", "training.precision: FP32 -> BF16"}));
}

TEST(Compare, ABlockThatOnlyOneHasIsOneDifference) {
  const Experiment before = small();
  Experiment after = before;
  after.mutable_data()->clear_synthetic();
  after.mutable_data()->set_path("/d.h5");
  after.clear_miar();
  std::vector<std::string> found;
  for (const auto& d : differences(before, after)) found.push_back(d.path + ": " + d.before + " -> " + d.after);
  EXPECT_EQ(found, (std::vector<std::string>{"data.path: (not set) -> \"/d.h5\"", "data.synthetic: (set) -> (not set)",
                                             "miar: (set) -> (not set)"}));
}

// A field of the schema that nobody has thought about must not be allowed to change silently.
TEST(Compare, WhatMayChange) {
  Experiment experiment = small();
  for (const char* path : {"training.epochs", "training.max_steps", "checkpoints.keep_last", "deadlines.step",
                           "training.microbatches", "data.path"})
    EXPECT_TRUE(may_change_in_a_run(path, experiment)) << path;
  for (const char* path : {"seed", "training.batch_size", "training.precision", "optimizer.learning_rate", "miar.dim",
                           "data.standardize", "checkpointsx"})
    EXPECT_FALSE(may_change_in_a_run(path, experiment)) << path;
  experiment.mutable_training()->set_reproducible(true);
  EXPECT_FALSE(may_change_in_a_run("training.microbatches", experiment));
}

TEST(Compare, StoredExperimentsOfEarlierVersionsHaveDefaults) {
  EXPECT_EQ(small().checkpoints().keep_last(), 2u);
  EXPECT_EQ(small().training().batch_size(), 32u);
}

}  // namespace
}  // namespace muster::config
