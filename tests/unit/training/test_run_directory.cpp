#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/training/run_directory.h"
#include "distributed/error.h"
#include "tests/unit/checkpoints/temporary_folder.h"

namespace muster::training {
namespace {

namespace fs = std::filesystem;
using checkpoints::contents;
using checkpoints::TemporaryFolder;
using distributed::Error;
using distributed::ExitCode;

template <typename Function>
void expect_error(ExitCode code, Function function) {
  try {
    function();
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
  }
}

TEST(RunDirectory, AppearsWithItsFirstFiles) {
  const TemporaryFolder folder;
  const std::string path = folder / "a/b/run";
  const RunDirectory directory(path, "seed: 1\n", {{"ranks", 2}});
  EXPECT_EQ(contents(path + "/config.txtpb"), "seed: 1\n");
  EXPECT_EQ(nlohmann::json::parse(contents(path + "/environment.json")), (nlohmann::json{{"ranks", 2}}));
  EXPECT_TRUE(fs::is_directory(path + "/weights"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "a/b"), {}), 1) << "something of the making was left";
}

TEST(RunDirectory, TrailingSlashAndRelativePath) {
  const TemporaryFolder folder;
  const RunDirectory directory(folder / "run/", "c", {});
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"run"}));
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  const RunDirectory relative("other", "c", {});
  fs::current_path(before);
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"other", "run"}));
}

TEST(RunDirectory, NeverOverwrites) {
  const TemporaryFolder folder;
  { const RunDirectory directory(folder / "run", "first", {}); }
  expect_error(ExitCode::kUsage, [&] { RunDirectory(folder / "run", "second", {}); });
  EXPECT_EQ(contents(folder / "run/config.txtpb"), "first");
  fs::create_directory(folder / "empty");
  expect_error(ExitCode::kUsage, [&] { RunDirectory(folder / "empty", "x", {}); });
  fs::create_symlink("nowhere", folder / "link");
  expect_error(ExitCode::kUsage, [&] { RunDirectory(folder / "link", "x", {}); });
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"empty", "link", "run"}));
}

TEST(RunDirectory, FailureLeavesNothing) {
  const TemporaryFolder folder;
  std::ofstream(folder / "file") << "x";
  expect_error(ExitCode::kIo, [&] { RunDirectory(folder / "file/run", "x", {}); });
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"file"}));
  // JSON that cannot be written stops the making half-way.
  EXPECT_ANY_THROW(RunDirectory(folder / "run", "x", {{"text", "\xff"}}));
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"file"}));
  if (geteuid() == 0) return;  // root may write anywhere
  fs::create_directory(folder / "locked");
  ::chmod((folder / "locked").c_str(), 0500);
  expect_error(ExitCode::kIo, [&] { RunDirectory(folder / "locked/run", "x", {}); });
}

TEST(RunDirectory, MetricsAreThereAtOnce) {
  const TemporaryFolder folder;
  RunDirectory directory(folder / "run", "c", {});
  directory.append_metrics({{"step", 1}, {"loss", 0.5}});
  EXPECT_EQ(contents(folder / "run/metrics.jsonl"), "{\"loss\":0.5,\"step\":1}\n");
  directory.append_metrics({{"step", 2}, {"loss", std::nan("")}});
  EXPECT_EQ(contents(folder / "run/metrics.jsonl"), "{\"loss\":0.5,\"step\":1}\n{\"loss\":null,\"step\":2}\n");
}

TEST(RunDirectory, WritesWholeFiles) {
  const TemporaryFolder folder;
  RunDirectory directory(folder / "run", "c", {});
  directory.write("result.json", "one");
  directory.write("result.json", "two");
  EXPECT_EQ(contents(directory.file("result.json")), "two");
  expect_error(ExitCode::kUsage, [&] { require_new_run_directory(folder / "run"); });
  EXPECT_NO_THROW(require_new_run_directory(folder / "new"));
}

}  // namespace
}  // namespace muster::training
