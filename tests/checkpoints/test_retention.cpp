#include "base/files.h"
#include "checkpoints/retention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "checkpoints/folders.h"
#include "tests/checkpoints/states.h"
#include "tests/helpers/temporary_folder.h"

namespace muster::checkpoints {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const std::string kUuid = "0123456789abcdef0123456789abcdef";

void save(const std::string& folder, uint64_t step, Score score = {}) {
  CheckpointInfo info;
  info.step = step;
  info.score = score;
  ASSERT_TRUE(save_on(1, folder, info, {{"x", at::ones({2})}}).committed);
}

std::vector<uint64_t> steps(const std::vector<FoundCheckpoint>& found) {
  std::vector<uint64_t> all;
  for (const FoundCheckpoint& each : found) all.push_back(each.step);
  return all;
}

TEST(Retention, KeepsTheLastTheBestAndEveryNth) {
  TemporaryFolder folder;
  const std::string c = folder / "c";
  EXPECT_THAT(superfluous(c, {}), IsEmpty());
  const double scores[] = {0.5, 0.9, 0.7, 0.9, NAN, 0.1};
  for (uint64_t i = 0; i < 6; ++i) save(c, 10 * (i + 1), {"acc2", scores[i], true});
  EXPECT_THAT(steps(find_checkpoints(c)), ElementsAre(60, 50, 40, 30, 20, 10));
  EXPECT_THAT(steps(superfluous(c, {6, 0, 0})), IsEmpty());
  EXPECT_THAT(steps(superfluous(c, {2, 0, 0})), ElementsAre(10, 20, 30, 40));
  EXPECT_THAT(steps(superfluous(c, {0, 0, 0})), ElementsAre(10, 20, 30, 40, 50));
  EXPECT_THAT(steps(superfluous(c, {1, 1, 0})), ElementsAre(10, 30, 40, 50));  // of the two best the earlier
  EXPECT_THAT(steps(superfluous(c, {1, 3, 0})), ElementsAre(10, 50));
  EXPECT_THAT(steps(superfluous(c, {1, 100, 0})), ElementsAre(50));
  EXPECT_THAT(steps(superfluous(c, {1, 0, 20})), ElementsAre(10, 30, 50));
  EXPECT_THAT(steps(superfluous(c, {2, 1, 30})), ElementsAre(10, 40));
  // 50 and 60 were found damaged, and the run has gone on from 30 to 40.
  EXPECT_THAT(steps(superfluous(c, {2, 0, 0}, 40)), ElementsAre(10, 20));
}

TEST(Retention, LowerMayBeBetterAndScoresOfAnotherMetricDoNotCount) {
  TemporaryFolder folder;
  const std::string c = folder / "c";
  save(c, 1, {"acc2", 0.01, true});
  save(c, 2, {"mae", 0.7, false});
  save(c, 3, {"mae", 0.6, false});
  save(c, 4, {"mae", 0.8, false});
  save(c, 5);
  EXPECT_THAT(steps(superfluous(c, {1, 1, 0})), ElementsAre(1, 2, 4));
  EXPECT_THAT(steps(superfluous(c, {1, 9, 0})), ElementsAre(1));
}

TEST(Retention, WhatCannotBeReadIsNeverSuperfluousAndDoesNotCountAsNewest) {
  TemporaryFolder folder;
  const std::string c = folder / "c";
  for (uint64_t step = 1; step <= 4; ++step) save(c, step);
  std::ofstream(c + "/step-00000004/MANIFEST.pb") << "damaged";
  std::filesystem::resize_file(c + "/step-00000001/rank-0-of-1.safetensors", 10);
  EXPECT_THAT(steps(superfluous(c, {1, 0, 0})), ElementsAre(2));
}

TEST(Retention, TheSaverRemovesWhatIsSuperfluousAfterTheCommit) {
  TemporaryFolder folder;
  CheckpointInfo info;
  for (info.step = 1; info.step <= 5; ++info.step) {
    ASSERT_TRUE(save_on(2, folder / "c", info, {{"x", at::ones({2})}}, info.step % 2 == 0, {2, 0, 4}).committed);
  }
  EXPECT_THAT(steps(find_checkpoints(folder / "c")), ElementsAre(5, 4));
  EXPECT_THAT(list_folder(folder / "c"), ElementsAre("step-00000004", "step-00000005"));
}

TEST(Retention, RemovesOnlyCheckpoints) {
  TemporaryFolder folder;
  const std::string c = folder / "c";
  save(c, 1);
  std::filesystem::create_directory(c + "/precious");
  error_of(ExitCode::kIo, [&] { remove_checkpoint(c + "/precious"); });
  error_of(ExitCode::kIo, [&] { remove_checkpoint(c + "/step-00000002"); });
  remove_checkpoint(c + "/step-00000001/");
  EXPECT_THAT(list_folder(c), ElementsAre("precious"));
}

TEST(Retention, SweepsOnlyWhatWritersLeft) {
  TemporaryFolder folder;
  const std::string c = folder / "c";
  EXPECT_EQ(sweep_leftovers(c), 0);
  save(c, 1);
  const std::vector<std::string> stays = {".bad-step-00000003-" + kUuid,
                                          ".nfs0001",
                                          ".tmp-00000003-short",
                                          ".tmp-other",
                                          "notes",
                                          "step-00000001",
                                          "step-1"};
  for (const std::string& name : stays) std::filesystem::create_directories(c + "/" + name);
  for (const std::string& name :
       {".tmp-00000002-" + kUuid, ".del-step-00000001-" + kUuid, ".old-step-00000001-" + kUuid}) {
    std::filesystem::create_directory(c + "/" + name);
    std::ofstream(c + "/" + name + "/rank-0-of-1.safetensors") << "half";
  }
  EXPECT_EQ(sweep_leftovers(c), 3);
  EXPECT_EQ(list_folder(c), stays);
}

// Killed between the two renames of a replacement: the one from before still is the checkpoint of its step.
TEST(Retention, AReplacementThatWasInterruptedIsUndone) {
  TemporaryFolder folder;
  const std::string c = folder / "c";
  save(c, 6);
  save(c, 7);
  std::filesystem::rename(c + "/step-00000007", c + "/.old-step-00000007-" + kUuid);
  EXPECT_THAT(steps(find_checkpoints(c)), ElementsAre(7, 6));
  EXPECT_EQ(load_on(2, c)->checkpoint.info.step, 7u);
  EXPECT_THAT(steps(superfluous(c, {1, 0, 0})), ElementsAre(6));
  EXPECT_EQ(sweep_leftovers(c), 0);
  EXPECT_THAT(list_folder(c), ElementsAre("step-00000006", "step-00000007"));
}

TEST(Folders, NamesOfSteps) {
  EXPECT_EQ(step_name(7), "step-00000007");
  EXPECT_EQ(step_name(1234567890123), "step-1234567890123");
  for (const uint64_t step : {uint64_t{0}, uint64_t{99999999}, uint64_t{100000000}, ~uint64_t{0}})
    EXPECT_EQ(step_of_name(step_name(step)), step);
  for (const char* other :
       {"", "step-", "step-7", "step-000000007", "step-0000000x", "step-99999999999999999999",
        "step-18446744073709551616", "Step-00000007", "step-00000007 ", ".step-00000007", "step-00000007/"}) {
    EXPECT_FALSE(step_of_name(other)) << other;
  }
}

TEST(Folders, TheFolderAbove) {
  EXPECT_EQ(parent_of("a/b"), "a");
  EXPECT_EQ(parent_of("a/b/"), "a");
  EXPECT_EQ(parent_of("a//b"), "a");
  EXPECT_EQ(parent_of("a"), ".");
  EXPECT_EQ(parent_of("/a"), "/");
  EXPECT_EQ(parent_of("/"), "/");
}

}  // namespace
}  // namespace muster::checkpoints
