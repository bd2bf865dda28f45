#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "core/run/run_directory.h"
#include "tests/helpers/temporary_folder.h"

namespace muster::run {
namespace {

namespace fs = std::filesystem;

template <typename Function>
void expect_error(ExitCode code, Function function) {
  try {
    function();
    ADD_FAILURE() << "accepted";
  } catch (const RunDirInUse& error) {
    ADD_FAILURE() << "no job has it: " << error.what();
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
  EXPECT_THROW(RunDirectory(folder / "run", "second", {}), RunDirInUse);
  EXPECT_EQ(contents(folder / "run/config.txtpb"), "first");
  fs::create_directory(folder / "empty");
  expect_error(ExitCode::kUsage, [&] { RunDirectory(folder / "empty", "x", {}); });
  fs::create_symlink("nowhere", folder / "link");
  expect_error(ExitCode::kUsage, [&] { RunDirectory(folder / "link", "x", {}); });
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"empty", "link", "run"}));
}

TEST(RunDirectory, BeginsInAPreparedOne) {
  const TemporaryFolder folder;
  const std::string run = folder / "a/run";
  EXPECT_EQ(run_dir_state(run), RunDirState::kNothing);
  prepare_run_directory(run, {{"job.sbatch", "one"}, {"submission.json", "{}"}});
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "a"), {}), 1) << "something of the making was left";
  prepare_run_directory(run, {{"job.sbatch", "two"}});
  EXPECT_EQ(contents(run + "/job.sbatch"), "two");
  EXPECT_EQ(run_dir_state(run), RunDirState::kPrepared);
  // What a beginning that was killed may leave is no run yet, and nothing of it counts.
  for (const char* name : {"/weights", "/checkpoints"}) fs::create_directory(run + name);
  std::ofstream(run + "/environment.json") << R"({"init_from": {"path": "old", "sha256": "0"}})";
  std::ofstream(run + "/metrics.jsonl");
  std::ofstream(run + "/.config.txtpb.tmp-host-1-1") << "half";
  EXPECT_EQ(run_dir_state(run), RunDirState::kPrepared);
  EXPECT_EQ(recorded_init_from(run).path, "");
  EXPECT_NO_THROW(require_new_run_directory(run));
  {
    const RunDirectory directory(run, "c", {{"ranks", 2}});
    EXPECT_EQ(contents(run + "/config.txtpb"), "c");
    EXPECT_EQ(nlohmann::json::parse(contents(run + "/environment.json")), (nlohmann::json{{"ranks", 2}}));
    EXPECT_EQ(contents(run + "/job.sbatch"), "two");
    EXPECT_FALSE(fs::exists(run + "/.config.txtpb.tmp-host-1-1"));
    EXPECT_EQ(run_dir_state(run), RunDirState::kBegun);
    EXPECT_THROW(RunDirectory(run, "second", {}), RunDirInUse);
  }
  std::ofstream(run + "/result.json") << "{}";
  EXPECT_EQ(run_dir_state(run), RunDirState::kFinished);
}

TEST(RunDirectory, WhatHoldsMoreIsNotPrepared) {
  const TemporaryFolder folder;
  for (const char* name : {"mine.txt", "result.json", "metrics.jsonl", "weights/best.safetensors",
                           "checkpoints/step-00000001/MANIFEST.pb"}) {
    const std::string run = folder / "run";
    fs::remove_all(run);
    prepare_run_directory(run, {{"submission.json", "{}"}});
    fs::create_directories(fs::path(run + "/" + name).parent_path());
    std::ofstream(run + "/" + name) << "x";
    EXPECT_EQ(run_dir_state(run), RunDirState::kOther) << name;
    expect_error(ExitCode::kUsage, [&] { RunDirectory(run, "c", {}); });
  }
  fs::create_directories(folder / "logs only/logs");
  EXPECT_EQ(run_dir_state(folder / "logs only"), RunDirState::kOther);
}

TEST(RunDirectory, FailureLeavesNothing) {
  const TemporaryFolder folder;
  std::ofstream(folder / "file") << "x";
  expect_error(ExitCode::kIo, [&] { RunDirectory(folder / "file/run", "x", {}); });
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"file"}));
  // A file that cannot be written stops the making half-way: the folders are there by then.
  struct rlimit limit, none{};
  ::getrlimit(RLIMIT_FSIZE, &limit);
  none.rlim_max = limit.rlim_max;
  std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &none);
  expect_error(ExitCode::kIo, [&] { RunDirectory(folder / "run", "x", {}); });
  ::setrlimit(RLIMIT_FSIZE, &limit);
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"file"}));
  if (geteuid() == 0) return;  // root may write anywhere
  fs::create_directory(folder / "locked");
  ::chmod((folder / "locked").c_str(), 0500);
  expect_error(ExitCode::kIo, [&] { RunDirectory(folder / "locked/run", "x", {}); });
}

TEST(RunDirectory, MetricsAreThereAtOnce) {
  const TemporaryFolder folder;
  RunDirectory directory(folder / "run", "c", {});
  const std::string first = "{\"kind\":\"train\",\"loss\":0.5,\"step\":1}\n";
  directory.append_metrics({{"kind", "train"}, {"step", 1}, {"loss", 0.5}});
  EXPECT_EQ(contents(folder / "run/metrics.jsonl"), first);
  directory.append_metrics({{"kind", "train"}, {"step", 2}, {"loss", std::nan("")}});
  EXPECT_EQ(contents(folder / "run/metrics.jsonl"), first + "{\"kind\":\"train\",\"loss\":null,\"step\":2}\n");
}

class ContinuedRun : public testing::Test {
 protected:
  ContinuedRun() {
    RunDirectory directory(folder_ / "run", "c", {});
    for (int step = 1; step <= 5; ++step)
      for (const char* kind : {"train", "valid"})
        directory.append_metrics({{"kind", kind}, {"step", step}, {"loss", 1.0 / step}});
    whole_ = contents(metrics());
  }
  std::string metrics() const { return folder_ / "run/metrics.jsonl"; }
  std::string rows(int lines) const {
    size_t end = 0;
    for (int line = 0; line < lines; ++line) end = whole_.find('\n', end) + 1;
    return whole_.substr(0, end);
  }
  TemporaryFolder folder_;
  std::string whole_;
};

TEST_F(ContinuedRun, RowsOfLaterStepsGoAndTheOthersStay) {
  for (const int step : {5, 3, 0}) {
    RunDirectory directory(folder_ / "run");
    EXPECT_NE(contents(metrics()), "") << "opening alone changes nothing";
    directory.continue_after(step);
    EXPECT_EQ(contents(metrics()), rows(2 * step));
  }
  RunDirectory directory(folder_ / "run");
  directory.continue_after(0);
  directory.append_metrics({{"kind", "train"}, {"step", 1}});
  EXPECT_EQ(contents(metrics()), "{\"kind\":\"train\",\"step\":1}\n");
}

TEST_F(ContinuedRun, TornEndsGo) {
  // A cut line, and what a power failure may leave behind a file's end.
  for (const std::string& torn : {std::string("{\"kind\":\"tra"), std::string(7, '\0'), std::string("\0\0\n", 3)}) {
    std::ofstream(metrics(), std::ios::binary) << rows(6) << torn;
    RunDirectory(folder_ / "run").continue_after(4);
    EXPECT_EQ(contents(metrics()), rows(6));
  }
}

TEST_F(ContinuedRun, TemporaryFilesOfKilledWritersGo) {
  for (const char* name :
       {"run/.result.json.tmp-host-1-0", "run/weights/.best.safetensors.tmp-host-1-2", "run/.mine", "run/notes.tmp-1"})
    std::ofstream(folder_ / name) << "x";
  RunDirectory(folder_ / "run").continue_after(5);
  EXPECT_FALSE(fs::exists(folder_ / "run/.result.json.tmp-host-1-0"));
  EXPECT_TRUE(fs::is_empty(folder_ / "run/weights"));
  EXPECT_TRUE(fs::exists(folder_ / "run/.mine") && fs::exists(folder_ / "run/notes.tmp-1")) << "what is not ours stays";
}

TEST_F(ContinuedRun, WhatIsNoRowAmongThemIsRefused) {
  std::ofstream(metrics(), std::ios::binary) << rows(2) << "my notes\n" << whole_.substr(rows(2).size());
  const std::string before = contents(metrics());
  expect_error(ExitCode::kBadData, [&] { RunDirectory(folder_ / "run").continue_after(4); });
  EXPECT_EQ(contents(metrics()), before);
}

TEST_F(ContinuedRun, OnlyRunDirectoriesAndOneJobAtATime) {
  expect_error(ExitCode::kUsage, [&] { RunDirectory(folder_ / "absent"); });
  fs::create_directory(folder_ / "other");
  expect_error(ExitCode::kUsage, [&] { RunDirectory(folder_ / "other"); });
  RunDirectory first(folder_ / "run");
  EXPECT_THROW(RunDirectory(folder_ / "run"), RunDirInUse);
}

TEST(RunDirectory, WritesWholeFiles) {
  const TemporaryFolder folder;
  RunDirectory directory(folder / "run", "c", {});
  directory.write("result.json", "one");
  directory.write("result.json", "two");
  EXPECT_EQ(contents(directory.file("result.json")), "two");
  EXPECT_THROW(require_new_run_directory(folder / "run"), RunDirInUse);
  std::filesystem::remove(directory.file("result.json"));
  EXPECT_THROW(require_new_run_directory(folder / "run"), RunDirInUse);
  EXPECT_NO_THROW(require_new_run_directory(folder / "new"));
}

}  // namespace
}  // namespace muster::run
