#include "checkpoints/saver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>

#include "base/atomic_file.h"
#include "tests/checkpoints/states.h"
#include "tests/helpers/temporary_folder.h"

namespace muster::checkpoints {
namespace {

using distributed::Communicator;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

CheckpointInfo info_of(uint64_t step) {
  CheckpointInfo info;
  info.step = step;
  info.epoch = -3;
  info.seed = 77;
  info.score = {"acc2", 0.25, true};
  info.config = std::string("opaque\0\xff", 8);
  info.training_state = "state of step " + std::to_string(step);
  return info;
}

void flip_bit(const std::string& path, std::size_t byte) {
  std::string bytes = contents(path);
  bytes.at(byte) ^= 4;
  std::ofstream(path, std::ios::binary) << bytes;
}

class SaverOn : public ::testing::TestWithParam<std::tuple<int, bool>> {};

TEST_P(SaverOn, WhatIsSavedIsLoadedOnAnyNumberOfRanks) {
  const auto [writers, asynchronous] = GetParam();
  TemporaryFolder folder;
  const std::string checkpoints = folder / "run/checkpoints";
  const auto state = awkward_state(writers);
  const SaveOutcome outcome = save_on(writers, checkpoints, info_of(120), state, asynchronous);
  EXPECT_TRUE(outcome.committed) << outcome.error;
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.step, 120u);
  EXPECT_GT(outcome.stall_seconds, 0);
  const Checkpoint checkpoint = verify_checkpoint(checkpoints + "/step-00000120");
  EXPECT_EQ(checkpoint.bytes, outcome.bytes);
  EXPECT_EQ(checkpoint.world_size, writers);
  EXPECT_EQ(checkpoint.files.size(), static_cast<std::size_t>(writers));
  for (int readers = 1; readers <= 4; ++readers) {
    std::vector<std::string> damaged;
    const auto loaded = load_on(readers, checkpoints, &damaged);
    ASSERT_TRUE(loaded);
    EXPECT_TRUE(damaged.empty());
    expect_same(loaded->tensors, state);
    const CheckpointInfo& info = loaded->checkpoint.info;
    EXPECT_EQ(info.step, 120u);
    EXPECT_EQ(info.epoch, -3);
    EXPECT_EQ(info.seed, 77u);
    EXPECT_EQ(info.score.name, "acc2");
    EXPECT_EQ(info.score.value, 0.25);
    EXPECT_EQ(info.config, std::string("opaque\0\xff", 8));
    EXPECT_EQ(info.training_state, "state of step 120");
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, SaverOn, ::testing::Combine(::testing::Values(1, 2, 3, 4), ::testing::Bool()));

TEST(Saver, ThereMayBeNoTensorsOrFewerThanRanks) {
  TemporaryFolder folder;
  for (const auto& state : {std::vector<NamedTensor>{}, std::vector<NamedTensor>{{"x", at::ones({2})}}}) {
    EXPECT_TRUE(save_on(3, folder / "c", info_of(state.size()), state).committed);
    expect_same(load_on(2, folder / "c")->tensors, state);
  }
}

TEST(Saver, StridesDoNotMatter) {
  TemporaryFolder folder;
  const at::Tensor matrix = at::arange(35.).view({5, 7});
  for (const bool asynchronous : {false, true}) {
    ASSERT_TRUE(
        save_on(2, folder / "c", info_of(asynchronous), {{"x", matrix.t()}, {"y", matrix.select(1, 2)}}, asynchronous)
            .committed);
    expect_same(load_on(1, folder / "c")->tensors, {{"x", matrix.t()}, {"y", matrix.select(1, 2)}});
  }
}

TEST(Saver, TensorsMayChangeOnceSaveHasReturned) {
  TemporaryFolder folder;
  distributed::run_as_threads(2, [&](Communicator& communicator) {
    CheckpointSaver saver(folder / "c", {}, true, communicator);
    std::vector<NamedTensor> state{{"x", at::full({1 << 20}, 1.f)}};
    saver.prepare(state);
    for (uint64_t step = 1; step <= 3; ++step) {
      saver.save(info_of(step), state);
      state[0].tensor.add_(1);
    }
    ASSERT_TRUE(saver.finish()->committed);
    EXPECT_FALSE(saver.finish());
  });
  expect_same(load_on(1, folder / "c")->tensors, {{"x", at::full({1 << 20}, 3.f)}});
}

// In place, also behind one that is in flight and still has its copy.
TEST(Saver, ASaveThatTrainingWaitsForIsDoneWhenItReturns) {
  TemporaryFolder folder;
  distributed::run_as_threads(2, [&](Communicator& communicator) {
    CheckpointSaver saver(folder / "c", {100, 0, 0}, true, communicator);
    std::vector<NamedTensor> state{{"x", at::full({1 << 16}, 1.f)}};
    saver.save(info_of(1), state);
    state[0].tensor.add_(1);
    const auto outcomes = saver.save(info_of(2), state, /*waits=*/true);
    EXPECT_FALSE(saver.in_flight());
    ASSERT_EQ(outcomes.size(), 2u);
    for (uint64_t i = 0; i < 2; ++i) {
      EXPECT_EQ(outcomes[i].step, i + 1);
      EXPECT_TRUE(outcomes[i].committed);
    }
    state[0].tensor.add_(1);
  });
  expect_same(load_on(1, folder / "c")->tensors, {{"x", at::full({1 << 16}, 2.f)}});
}

TEST(Saver, OneSaveIsInFlightAndMessagesReportItsEnd) {
  TemporaryFolder folder;
  distributed::run_as_threads(3, [&](Communicator& communicator) {
    CheckpointSaver saver(folder / "c", {100, 0, 0}, true, communicator);
    EXPECT_FALSE(saver.in_flight());
    EXPECT_EQ(saver.pending_message(), "");
    EXPECT_TRUE(saver.save(info_of(1), awkward_state(1)).empty());
    EXPECT_TRUE(saver.in_flight());
    // The next one waits for it, and tells what became of it.
    const auto outcomes = saver.save(info_of(2), awkward_state(2));
    ASSERT_EQ(outcomes.size(), 1u);
    EXPECT_EQ(outcomes[0].step, 1u);
    EXPECT_TRUE(outcomes[0].committed);
    std::optional<SaveOutcome> heard;
    while (!heard) heard = saver.handle(communicator.all_gather_bytes(saver.pending_message()));
    EXPECT_EQ(heard->step, 2u);
    EXPECT_TRUE(heard->committed);
    EXPECT_FALSE(saver.in_flight());
  });
  EXPECT_EQ(find_checkpoints(folder / "c").size(), 2u);
}

TEST(Saver, SharesAreNearlyEqual) {
  TemporaryFolder folder;
  ASSERT_TRUE(save_on(3, folder / "c", info_of(1),
                      {{"a", at::ones({1000, 10})}, {"b", at::ones({500, 100})}, {"c", at::ones({2000})}})
                  .committed);
  for (const CheckpointFile& file : read_manifest(folder / "c/step-00000001").files)
    EXPECT_NEAR(file.size, 62000 * 4 / 3, 1500);
}

TEST(Saver, OnlyTheFolderOfTheCheckpointIsThereAfterwards) {
  TemporaryFolder folder;
  ASSERT_TRUE(save_on(2, folder / "c", info_of(123456789), awkward_state(1)).committed);
  EXPECT_THAT(folder.names(), ElementsAre("c"));
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path() / "c"))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  EXPECT_THAT(names,
              ElementsAre("MANIFEST.pb", "rank-0-of-2.safetensors", "rank-1-of-2.safetensors", "step-123456789"));
}

TEST(Saver, AWholeCheckpointOfTheSameStepIsReplaced) {
  TemporaryFolder folder;
  ASSERT_TRUE(save_on(1, folder / "c", info_of(5), awkward_state(1)).committed);
  ASSERT_TRUE(save_on(2, folder / "c", info_of(5), awkward_state(2)).committed);
  expect_same(load_on(1, folder / "c")->tensors, awkward_state(2));
  EXPECT_THAT(std::distance(std::filesystem::directory_iterator(folder / "c"), {}), 1);
}

TEST(Saver, ADamagedOneOfTheSameStepIsSetAside) {
  TemporaryFolder folder;
  ASSERT_TRUE(save_on(1, folder / "c", info_of(5), awkward_state(1)).committed);
  flip_bit(folder / "c/step-00000005/rank-0-of-1.safetensors", 2000);
  ASSERT_TRUE(save_on(2, folder / "c", info_of(5), awkward_state(2)).committed);
  expect_same(load_on(1, folder / "c")->tensors, awkward_state(2));
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "c")) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  EXPECT_THAT(names, ElementsAre(StartsWith(".bad-step-00000005-"), "step-00000005"));
  EXPECT_EQ(sweep_leftovers(folder / "c"), 0);
  EXPECT_TRUE(std::filesystem::exists(folder / ("c/" + names[0] + "/MANIFEST.pb")));
}

TEST(Saver, AFailureIsAnOutcomeThatNamesTheRanks) {
  TemporaryFolder folder;
  std::ofstream(folder / "file") << "a file";
  const SaveOutcome outcome = save_on(2, folder / "file", info_of(2), awkward_state(2));
  EXPECT_FALSE(outcome.committed);
  EXPECT_THAT(outcome.error, AllOf(HasSubstr("step 2 was not saved"), HasSubstr("rank 0: Cannot make the folder"),
                                   HasSubstr("rank 1: Cannot make")));
  EXPECT_EQ(contents(folder / "file"), "a file");
}

// What a full disk does: files stop growing in the middle of a write. One rank's share is larger than the limit, the
// other's is not.
TEST(Saver, AFailedWriteLeavesTheOlderCheckpointsAndNothingElse) {
  TemporaryFolder folder;
  ASSERT_TRUE(save_on(2, folder / "c", info_of(1), awkward_state(1)).committed);
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ::getrlimit(RLIMIT_FSIZE, &before);
  for (const bool asynchronous : {false, true}) {
    const rlimit limit{100'000, before.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const SaveOutcome outcome = save_on(2, folder / "c", info_of(2),
                                        {{"small", at::ones({10, 1})}, {"wide", at::ones({1, 100'000})}}, asynchronous);
    ::setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_FALSE(outcome.committed);
    EXPECT_THAT(outcome.error, AllOf(HasSubstr("of step 2 was not saved"), HasSubstr("could not write to"),
                                     HasSubstr("File too large")));
    EXPECT_THAT(std::distance(std::filesystem::directory_iterator(folder / "c"), {}), 1);
    expect_same(load_on(2, folder / "c")->tensors, awkward_state(1));
  }
}

TEST(Saver, RanksThatSaveDifferentThingsFailTogether) {
  TemporaryFolder folder;
  for (const bool other_shape : {false, true}) {
    const std::string message = error_of(ExitCode::kInternal, [&] {
      distributed::run_as_threads(2, [&](Communicator& communicator) {
        CheckpointSaver saver(folder / "c", {}, false, communicator);
        const bool odd = communicator.rank() == 1;
        saver.save(info_of(odd && !other_shape ? 2 : 1), {{"x", at::ones({odd && other_shape ? 3 : 2})}});
      });
    });
    EXPECT_THAT(message, HasSubstr("do not save the same checkpoint"));
  }
}

TEST(Saver, TheDestructorWaitsAndLeavesNothingThatCountsAsACheckpoint) {
  TemporaryFolder folder;
  distributed::run_as_threads(2, [&](Communicator& communicator) {
    CheckpointSaver saver(folder / "c", {}, true, communicator);
    saver.save(info_of(1), awkward_state(1));
  });
  EXPECT_TRUE(find_checkpoints(folder / "c").empty());
  EXPECT_EQ(sweep_leftovers(folder / "c"), 1);
  EXPECT_TRUE(std::filesystem::is_empty(folder / "c"));
}

}  // namespace
}  // namespace muster::checkpoints
