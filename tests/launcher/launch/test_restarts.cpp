#include "launcher/launch/restarts.h"

#include <gtest/gtest.h>

#include "base/atomic_file.h"
#include "base/files.h"
#include "launcher/slurm/job_log.h"
#include "tests/helpers/temporary_folder.h"

namespace muster::launcher {
namespace {

TEST(RunProgress, GrowsWithWhatFrozenEncodersHaveDone) {
  TemporaryFolder run;
  EXPECT_EQ(run_progress(run.path(), -1), kNoProgress);
  std::vector<int64_t> seen{run_progress(run.path(), -1)};
  make_folders(run / "frozen_features/key.parts");
  for (const char* const file : {"key.parts/00000000.safetensors", "key.parts/00000007.safetensors", "key.json"}) {
    write_file_atomically(run / ("frozen_features/" + std::string(file)), "");
    seen.push_back(run_progress(run.path(), -1));
    EXPECT_GT(seen.back(), seen[seen.size() - 2]) << file;
  }
  EXPECT_LT(seen.back(), 0);
}

TEST(RunProgress, StartsCountUntilOneThatHadLess) {
  const auto started = [](const nlohmann::json& more) {
    nlohmann::json row = {{"event", "started"}};
    row.update(more);
    return row;
  };
  const nlohmann::json none = {{"step", nullptr}, {"progress", kNoProgress}};
  EXPECT_EQ(starts_without_progress({started(none), started(none)}, kNoProgress), 2);
  EXPECT_EQ(starts_without_progress({started(none), started(none)}, kNoProgress + 1), 0);
  EXPECT_EQ(starts_without_progress({started(none), started({{"step", nullptr}, {"progress", kNoProgress + 1}})},
                                    kNoProgress + 1),
            1);
  EXPECT_EQ(starts_without_progress({started(none), started({{"step", 20}, {"progress", 20}})}, 20), 1);
  // Rows that older programs have left.
  EXPECT_EQ(starts_without_progress({started({{"step", nullptr}})}, kNoProgress), 1);
  EXPECT_EQ(starts_without_progress({started({{"step", 10}}), started({{"step", 20}})}, 20), 1);
  EXPECT_EQ(starts_without_progress({started({{"step", 20}}), {{"event", "submitted"}}}, 20), 0);
}

}  // namespace
}  // namespace muster::launcher
