#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "tests/checkpoints/states.h"
#include "tests/helpers/temporary_folder.h"

// The calls that change the disk, in place of libc's in this program: the `failing`-th of them since it was set fails
// with `failure`, and so do the following ones while `lasting`.
namespace {

enum Call { kWrite, kFsync, kRename, kUnlink, kMkdir, kRmdir, kCalls };
std::atomic<int> calls{0}, calls_of[kCalls], failing{0}, failure{EIO}, only{-1};
std::atomic<bool> lasting{false};
std::atomic<int64_t> free_bytes{-1};  // what statvfs tells; negative: the truth

bool fails(Call call) {
  if (failing == 0 || (only >= 0 && only != call)) return false;
  const int number = ++calls;
  ++calls_of[call];
  if (lasting ? number < failing : number != failing) return false;
  errno = failure;
  return true;
}

template <typename Function>
Function original(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {
ssize_t write(int descriptor, const void* bytes, size_t count) {
  static const auto real = original<ssize_t (*)(int, const void*, size_t)>("write");
  // A short write first, as a filling disk does it.
  if (fails(kWrite)) return failure == ENOSPC && count > 1 ? real(descriptor, bytes, count / 2) : -1;
  return real(descriptor, bytes, count);
}
int statvfs(const char* path, struct statvfs* space) noexcept {
  static const auto real = original<int (*)(const char*, struct statvfs*)>("statvfs");
  const int status = real(path, space);
  if (status == 0 && free_bytes >= 0) space->f_frsize = 1, space->f_bavail = static_cast<fsblkcnt_t>(free_bytes);
  return status;
}
int fsync(int descriptor) {
  static const auto real = original<int (*)(int)>("fsync");
  return fails(kFsync) ? -1 : real(descriptor);
}
int rename(const char* from, const char* to) noexcept {
  static const auto real = original<int (*)(const char*, const char*)>("rename");
  return fails(kRename) ? -1 : real(from, to);
}
int unlink(const char* path) noexcept {
  static const auto real = original<int (*)(const char*)>("unlink");
  return fails(kUnlink) ? -1 : real(path);
}
int mkdir(const char* path, mode_t mode) noexcept {
  static const auto real = original<int (*)(const char*, mode_t)>("mkdir");
  return fails(kMkdir) ? -1 : real(path, mode);
}
int rmdir(const char* path) noexcept {
  static const auto real = original<int (*)(const char*)>("rmdir");
  return fails(kRmdir) ? -1 : real(path);
}
}

namespace muster::checkpoints {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

CheckpointInfo step_info(uint64_t step) {
  CheckpointInfo info;
  info.step = step;
  return info;
}

void fail_from_now(int call, int error, bool from_there_on = false, int only_these = -1) {
  calls = 0;
  for (auto& each : calls_of) each = 0;
  failure = error;
  lasting = from_there_on;
  only = only_these;
  failing = call;
}

void fail_no_more() { failing = 0; }

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

class FailingDisk : public ::testing::TestWithParam<std::tuple<int, bool, int, bool>> {};

// Whichever call fails, once or from there on: afterwards the newest checkpoint is whole and is the one that the
// outcome says.
TEST_P(FailingDisk, EveryCallInTurn) {
  const auto [ranks, replacing, error, lasts] = GetParam();
  int cases = 0, committed = 0;
  for (int call = 1;; ++call) {
    // In memory: hundreds of saves would otherwise wait for the device.
    TemporaryFolder folder(std::filesystem::is_directory("/dev/shm") ? "/dev/shm"
                                                                     : std::filesystem::temp_directory_path());
    const std::string c = folder / "c";
    ASSERT_TRUE(save_on(1, c, step_info(1), awkward_state(1)).committed);
    ASSERT_TRUE(save_on(1, c, step_info(2), awkward_state(2)).committed);
    const uint64_t step = replacing ? 2 : 3;
    fail_from_now(call, error, lasts);
    const SaveOutcome outcome = save_on(ranks, c, step_info(step), awkward_state(3), call % 2 == 0, {2, 0, 0});
    fail_no_more();
    const auto loaded = load_on(2, c);
    ASSERT_TRUE(loaded) << "call " << call;
    if (outcome.committed) {
      EXPECT_EQ(loaded->checkpoint.info.step, step) << "call " << call;
      expect_same(loaded->tensors, awkward_state(3));
    } else {
      EXPECT_THAT(outcome.error, HasSubstr(std::strerror(error)));
      EXPECT_TRUE(lasts || std::filesystem::exists(c + "/step-00000002")) << "call " << call << ": " << outcome.error;
      // Where nothing fails any more, what fails to be undone may have come through; it is whole all the same.
      const bool new_one = lasts && loaded->checkpoint.info.step == step &&
                           at::equal(loaded->tensors.at("one row"), awkward_state(3)[3].tensor);
      if (!new_one) {
        EXPECT_EQ(loaded->checkpoint.info.step, 2u) << "call " << call << ": " << outcome.error;
        expect_same(loaded->tensors, awkward_state(2));
      }
    }
    // What is left is hidden and goes when the next job sweeps; then what was found before is found still.
    sweep_leftovers(c);
    for (const std::string& name : names_in(c)) EXPECT_THAT(name, StartsWith("step-")) << "call " << call;
    EXPECT_EQ(load_on(1, c)->checkpoint.info.step, loaded->checkpoint.info.step);
    expect_same(load_on(1, c)->tensors,
                awkward_state(
                    outcome.committed || at::equal(loaded->tensors.at("one row"), awkward_state(3)[3].tensor) ? 3 : 2));
    ++cases;
    committed += outcome.committed;
    if (calls < call) break;  // none was left to fail
  }
  EXPECT_GT(cases, 10);
  EXPECT_GE(committed, lasts ? 1 : 3);
}

INSTANTIATE_TEST_SUITE_P(Cases, FailingDisk,
                         ::testing::Combine(::testing::Values(1, 2), ::testing::Bool(), ::testing::Values(EIO, ENOSPC),
                                            ::testing::Bool()));

TEST(FailingDiskOnce, AFailedFsyncMeansTheFileIsWrittenAgainUnderAnotherName) {
  for (const Call call : {kFsync, kWrite}) {
    TemporaryFolder folder;
    ::mkdir((folder / "c").c_str(), 0777);
    fail_from_now(1, EIO, false, call);
    const SaveOutcome outcome = save_on(1, folder / "c", step_info(1), awkward_state(1));
    fail_no_more();
    EXPECT_TRUE(outcome.committed) << outcome.error;
    EXPECT_THAT(names_in(folder / "c/step-00000001"), ElementsAre("MANIFEST.pb", "rank-0-of-1.retry1.safetensors"));
    expect_same(load_on(2, folder / "c")->tensors, awkward_state(1));
  }
}

TEST(FailingDiskOnce, TheManifestToo) {
  TemporaryFolder folder;
  ::mkdir((folder / "c").c_str(), 0777);
  fail_from_now(2, EIO, false, kFsync);
  const SaveOutcome outcome = save_on(1, folder / "c", step_info(1), awkward_state(1));
  fail_no_more();
  EXPECT_TRUE(outcome.committed) << outcome.error;
  EXPECT_THAT(names_in(folder / "c/step-00000001"), ElementsAre("MANIFEST.pb", "rank-0-of-1.safetensors"));
  expect_same(load_on(2, folder / "c")->tensors, awkward_state(1));
}

TEST(FailingDiskOnce, AFullDiskIsNotTriedAgain) {
  TemporaryFolder folder;
  fail_from_now(1, ENOSPC, true, kWrite);
  const SaveOutcome outcome = save_on(2, folder / "c", step_info(1), awkward_state(1));
  const int writes = calls_of[kWrite];
  fail_no_more();
  EXPECT_FALSE(outcome.committed);
  EXPECT_THAT(outcome.error, AllOf(HasSubstr("rank 0: could not write to"), HasSubstr("rank 1: could not"),
                                   HasSubstr("No space left"), testing::ContainsRegex("[0-9] [MGT]B are free there")));
  EXPECT_TRUE(names_in(folder / "c").empty());
  EXPECT_LT(writes, 200);
}

TEST(FailingDiskOnce, TooSmallADiskIsFoundBeforeAnythingIsWritten) {
  TemporaryFolder folder;
  const std::vector<NamedTensor> state = {{"x", at::ones({1 << 20})}};
  ASSERT_TRUE(save_on(2, folder / "c", step_info(1), state).committed);
  free_bytes = 1 << 20;
  fail_from_now(1 << 20, EIO);
  const SaveOutcome outcome = save_on(2, folder / "c", step_info(2), state);
  const int writes = calls_of[kWrite];
  free_bytes = -1;
  fail_no_more();
  EXPECT_FALSE(outcome.committed);
  EXPECT_EQ(writes, 0);
  EXPECT_THAT(outcome.error, AllOf(HasSubstr("needs 4.2 MB more"), HasSubstr("1.0 MB are free"), HasSubstr("rank 1")));
  EXPECT_THAT(names_in(folder / "c"), ElementsAre("step-00000001"));
}

TEST(FailingDiskOnce, ADeviceThatKeepsFailingIsGivenUp) {
  TemporaryFolder folder;
  ::mkdir((folder / "c").c_str(), 0777);
  fail_from_now(1, EIO, true, kFsync);
  const SaveOutcome outcome = save_on(1, folder / "c", step_info(1), awkward_state(1));
  const int tries = calls_of[kFsync];
  fail_no_more();
  EXPECT_FALSE(outcome.committed);
  EXPECT_EQ(tries, 3);
  EXPECT_THAT(outcome.error, HasSubstr("in 3 attempts"));
  EXPECT_TRUE(names_in(folder / "c").empty());
}

}  // namespace
}  // namespace muster::checkpoints
