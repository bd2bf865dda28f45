#include "base/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/files.h"
#include "tests/helpers/temporary_folder.h"

namespace muster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <typename Action>
std::string io_error(Action action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo);
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

TEST(AtomicFile, AppearsWholeAndReplacesTheOldOne) {
  TemporaryFolder folder;
  const std::string path = folder / "result.json";
  write_file_atomically(path, "old");
  EXPECT_EQ(contents(path), "old");
  {
    AtomicFile file(path);
    file.write("ne");
    file.write("w!");
    EXPECT_EQ(contents(path), "old");
    EXPECT_EQ(file.size(), 4u);
    EXPECT_EQ(folder.names().size(), 2u);
    file.commit();
  }
  EXPECT_EQ(contents(path), "new!");
  EXPECT_THAT(folder.names(), ElementsAre("result.json"));
}

TEST(AtomicFile, WithoutCommitNothingChanges) {
  TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  { AtomicFile(folder / "a").write("new"); }
  { AtomicFile(folder / "b").write("new"); }
  EXPECT_EQ(contents(folder / "a"), "old");
  EXPECT_THAT(folder.names(), ElementsAre("a"));
}

TEST(AtomicFile, TwoWritersOfOneFileDoNotMix) {
  TemporaryFolder folder;
  AtomicFile first(folder / "a"), second(folder / "a");
  first.write("first");
  second.write("second");
  second.commit();
  first.commit();
  EXPECT_EQ(contents(folder / "a"), "first");
  EXPECT_THAT(folder.names(), ElementsAre("a"));
}

// In containers every process may be number 1 of the same host, so what an earlier one left can have our next name.
TEST(AtomicFile, NeverWritesIntoAnotherProcessesTemporaryFile) {
  TemporaryFolder folder;
  std::string left;
  {
    AtomicFile file(folder / "a");
    left = folder.names().at(0);
  }
  const std::size_t number = left.rfind('-') + 1;
  left = left.substr(0, number) + std::to_string(std::stoull(left.substr(number)) + 1);
  std::ofstream(folder / left) << "left";
  write_file_atomically(folder / "a", "new");
  EXPECT_EQ(contents(folder / "a"), "new");
  EXPECT_THAT(folder.names(), ElementsAre(left, "a"));
  EXPECT_EQ(contents(folder / left), "left");
}

TEST(AtomicFile, EveryKindOfBytesAndNames) {
  TemporaryFolder folder;
  const std::string bytes("\0\xff\n", 3);
  for (const std::string& name : {std::string(255, 'n'), std::string("Gefühl 感情"), std::string("-rf")}) {
    write_file_atomically(folder / name, bytes);
    EXPECT_EQ(contents(folder / name), bytes);
  }
  write_file_atomically(folder / "empty", "");
  EXPECT_EQ(contents(folder / "empty"), "");
  EXPECT_EQ(folder.names().size(), 4u);
}

TEST(AtomicFile, WritesThroughNoLink) {
  TemporaryFolder folder;
  std::filesystem::create_directory(folder / "scratch");
  write_file_atomically(folder / "scratch/real", "old");
  std::filesystem::create_symlink("scratch/real", folder / "link");
  std::filesystem::create_symlink("nowhere", folder / "dangling");
  for (const char* name : {"link", "dangling"}) {
    EXPECT_THAT(io_error([&] { write_file_atomically(folder / name, "new"); }), HasSubstr("it is a symbolic link"));
    EXPECT_TRUE(std::filesystem::is_symlink(folder / name));
  }
  EXPECT_EQ(contents(folder / "scratch/real"), "old");
  EXPECT_FALSE(std::filesystem::exists(folder / "nowhere"));
}

TEST(MakeFolderAtomically, AppearsWholeAndWithTheUsualPermissions) {
  TemporaryFolder folder;
  const mode_t before = ::umask(027);
  EXPECT_TRUE(make_folder_atomically(folder / "a/b/", [&](const std::string& building) {
    EXPECT_FALSE(std::filesystem::exists(folder / "a/b"));
    // Nobody else may look into it, or put something there, before it is done.
    EXPECT_EQ(static_cast<int>(std::filesystem::status(parent_of(building)).permissions()), 0700);
    write_file_atomically(building + "/file", "x");
  }));
  ::umask(before);
  EXPECT_EQ(contents(folder / "a/b/file"), "x");
  EXPECT_EQ(static_cast<int>(std::filesystem::status(folder / "a/b").permissions()), 0750);
  EXPECT_EQ(list_folder(folder / "a"), std::vector<std::string>{"b"});
}

TEST(MakeFolderAtomically, TakesNothingThatIsThere) {
  TemporaryFolder folder;
  make_folders(folder / "taken");
  write_file_atomically(folder / "taken/file", "theirs");
  write_file_atomically(folder / "file", "theirs");
  std::filesystem::create_directory_symlink("taken", folder / "link");
  for (const char* name : {"taken", "file", "link"})
    EXPECT_FALSE(make_folder_atomically(folder / name, [](const std::string&) {})) << name;
  EXPECT_EQ(contents(folder / "taken/file"), "theirs");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_THROW(make_folder_atomically(folder / "new", [](const std::string&) { throw std::runtime_error("no"); }),
               std::runtime_error);
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"file", "link", "taken"}));
}

TEST(AtomicFile, RespectsTheUmask) {
  TemporaryFolder folder;
  const mode_t before = ::umask(027);
  write_file_atomically(folder / "a", "x");
  ::umask(before);
  EXPECT_EQ(static_cast<int>(std::filesystem::status(folder / "a").permissions()), 0640);
}

TEST(AtomicFile, RefusesWhatIsNoFile) {
  TemporaryFolder folder;
  EXPECT_THAT(io_error([&] { write_file_atomically(folder.path().string(), "x"); }), HasSubstr("it is a folder"));
  EXPECT_THAT(io_error([&] { write_file_atomically(folder / "new/", "x"); }), HasSubstr("names a folder"));
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(io_error([&] { write_file_atomically(folder / "pipe", "x"); }), HasSubstr("device, pipe or socket"));
  const std::string missing = folder / "no/such/file";
  EXPECT_THAT(io_error([&] { write_file_atomically(missing, "x"); }),
              ::testing::AllOf(HasSubstr(missing), HasSubstr("No such file or directory")));
  EXPECT_THAT(io_error([&] { write_file_atomically(folder / std::string(300, 'n'), "x"); }),
              HasSubstr("File name too long"));
  EXPECT_THAT(folder.names(), ElementsAre("pipe"));
}

// What a full disk does: the file stops growing in the middle of a write.
TEST(AtomicFile, AFailedWriteLeavesTheOldFileAndNothingElse) {
  TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100000, 100000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_file_atomically(folder / "a", std::string(200000, 'x'));
    } catch (const Error& error) {
      ::_exit(std::string(error.what()).find("File too large") != std::string::npos ? 7 : 8);
    }
    ::_exit(9);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(contents(folder / "a"), "old");
  EXPECT_THAT(folder.names(), ElementsAre("a"));
}

TEST(AtomicFile, AProcessKilledWhileWritingLeavesTheOldFile) {
  TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  const pid_t child = ::fork();
  if (child == 0) {
    AtomicFile file(folder / "a");
    file.write("new");
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(contents(folder / "a"), "old");
  EXPECT_EQ(folder.names().size(), 2u);
  EXPECT_THAT(folder.names().front(), ::testing::StartsWith(".a.tmp-"));
}

TEST(AtomicFile, AFullDiskIsReportedWithNeededAndFreeSpace) {
  TemporaryFolder folder;
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    // A disk of 64 KiB that only this child sees.
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=64k") != 0) {
      ::_exit(77);
    }
    write_file_atomically(folder / "a", std::string(1000, 'o'));
    try {
      write_file_atomically(folder / "a", std::string(3 << 20, 'x'));
    } catch (const Error& error) {
      const std::string message = error.what();
      const bool kept = contents(folder / "a") == std::string(1000, 'o') && folder.names().size() == 1;
      const bool told = ::write(pipe[1], message.data(), message.size()) == static_cast<ssize_t>(message.size());
      ::_exit(kept && told ? 0 : 1);
    }
    ::_exit(2);
  }
  ::close(pipe[1]);
  std::string message(4096, 0);
  message.resize(std::max<ssize_t>(::read(pipe[0], message.data(), message.size()), 0));
  ::close(pipe[0]);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "may not mount a small disk here (needs root)";
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_THAT(message, ::testing::AllOf(HasSubstr(folder / "a"), HasSubstr("No space left"), HasSubstr("needs 3.1 MB"),
                                        HasSubstr("61 KB are free")));
}

}  // namespace
}  // namespace muster
