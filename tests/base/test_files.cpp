#include "base/files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "base/error.h"
#include "tests/helpers/temporary_folder.h"

namespace muster {
namespace {

using testing::HasSubstr;

template <typename Step>
std::string error_of(ExitCode code, Step step) {
  try {
    step();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  return "no error";
}

TEST(ReadFile, WholeFilesUpToALimit) {
  TemporaryFolder folder;
  const std::string path = folder / "a", bytes = std::string(100000, 'x') + std::string(1, '\0') + "\n";
  std::ofstream(path) << bytes;
  EXPECT_EQ(read_file(path, bytes.size()), bytes);
  EXPECT_EQ(error_of(ExitCode::kBadData, [&] { read_file(path, 99999); }), path + " is larger than 100 KB.");
  EXPECT_EQ(read_file_if_there(path, 1 << 20), bytes);
  EXPECT_EQ(read_file_if_there(path, bytes.size() - 1), std::nullopt);
}

TEST(ReadFile, WhatCannotBeRead) {
  TemporaryFolder folder;
  EXPECT_EQ(error_of(ExitCode::kIo, [&] { read_file(folder / "no", 10); }),
            "Cannot read " + (folder / "no") + ": No such file or directory.");
  EXPECT_THAT(error_of(ExitCode::kIo, [&] { read_file(folder.path().string(), 10); }), HasSubstr("Is a directory"));
  EXPECT_EQ(read_file_if_there(folder / "no", 10), std::nullopt);
  EXPECT_EQ(read_file_if_there(folder.path().string(), 10), std::nullopt);
}

TEST(ReadFile, PipesAndFilesOfTheKernel) {
  TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  // Not even for a moment: nobody may ever write to it.
  for (const char* path : {"/dev/zero", "/dev/null"}) EXPECT_THROW(read_file(path, 100), Error) << path;
  EXPECT_THROW(read_file(folder / "pipe", 100), Error);
  EXPECT_THROW(open_to_read(folder / "pipe"), Error);
  EXPECT_EQ(read_file_or_pipe(folder / "pipe", 100), "");
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::thread writer([&] {  // later, and in two pieces
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    write_all(ends[1], "through ", "pipe");
    write_all(ends[1], "a pipe", "pipe");
    ::close(ends[1]);
  });
  EXPECT_EQ(read_file_or_pipe("/dev/fd/" + std::to_string(ends[0]), 100), "through a pipe");
  writer.join();
  ::close(ends[0]);
  EXPECT_THAT(read_file("/proc/self/status", 1 << 20), HasSubstr("State:"));
}

TEST(FirstLine, WithoutItsEnd) {
  TemporaryFolder folder;
  std::ofstream(folder / "a") << "one\ntwo\n";
  std::ofstream(folder / "b") << "one";
  EXPECT_EQ(first_line_of(folder / "a"), "one");
  EXPECT_EQ(first_line_of(folder / "b"), "one");
  EXPECT_EQ(first_line_of(folder / "c"), "");
}

TEST(WriteAll, AllBytesOrTheReason) {
  TemporaryFolder folder;
  const std::string path = folder / "a", bytes(3 << 20, 'y');
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::string got;
  std::thread reader([&] {  // a pipe takes its bytes in many portions
    char piece[4096];
    for (ssize_t count; (count = ::read(ends[0], piece, sizeof piece)) > 0;) got.append(piece, count);
  });
  write_all(ends[1], bytes, "a pipe");
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  EXPECT_TRUE(got == bytes);
  EXPECT_EQ(try_write_all(-1, "x"), EBADF);
  EXPECT_EQ(error_of(ExitCode::kIo, [&] { write_all(-1, "x", path); }),
            "Cannot write " + path + ": Bad file descriptor.");
}

TEST(Folders, AreMadeListedAndRemoved) {
  TemporaryFolder folder;
  make_folders(folder / "a/b");
  make_folders(folder / "a/b");
  std::ofstream(folder / "a/b/2") << "x";
  std::ofstream(folder / "a/b/.1") << "x";
  EXPECT_THAT(list_folder(folder / "a/b"), testing::ElementsAre(".1", "2"));
  EXPECT_THAT(error_of(ExitCode::kIo, [&] { make_folders(folder / "a/b/2"); }), HasSubstr("File exists"));
  rename_folder(folder / "a/b", folder / "c");
  remove_folder(folder / "c");
  remove_folder(folder / "c");
  EXPECT_TRUE(list_folder(folder / "c").empty());
}

TEST(Folders, FreeSpace) {
  TemporaryFolder folder;
  const auto space = free_space(folder.path().string());
  ASSERT_TRUE(space);
  EXPECT_GT(space->size, 0u);
  EXPECT_LE(space->free, space->size);
  EXPECT_THAT(free_space_text(folder.path().string()), HasSubstr(" are free there"));
  EXPECT_FALSE(free_space(folder / "no"));
  EXPECT_EQ(free_space_text(folder / "no"), "");
}

TEST(Uuid, IsNewEachTime) {
  EXPECT_EQ(make_uuid().size(), 32u);
  EXPECT_EQ(make_uuid().find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_NE(make_uuid(), make_uuid());
}

}  // namespace
}  // namespace muster
