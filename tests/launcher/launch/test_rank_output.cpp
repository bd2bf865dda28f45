// What launch backends make of ranks' output, and how it is put together again. The texts are what Open MPI 4.1.4 and
// Slurm 22.05.8 wrote.
#include "launcher/launch/rank_output.h"

#include <gtest/gtest.h>

#include <random>

namespace muster::launcher {
namespace {

using Texts = std::map<int, std::string>;

// What comes out when `bytes` come in pieces of so many.
Texts read(LaunchBackend backend, const std::string& bytes, size_t piece, int ranks = 12,
           const std::string& stream = "stdout") {
  Texts texts;
  LabelReader reader(backend, stream, ranks, [&](int rank, const std::string& text) {
    EXPECT_FALSE(text.empty());
    texts[rank] += text;
  });
  for (size_t start = 0; start < bytes.size(); start += piece) reader.take(bytes.substr(start, piece));
  reader.finish();
  return texts;
}

void expect(LaunchBackend backend, const std::string& bytes, const Texts& wanted,
            const std::string& stream = "stdout") {
  for (const size_t piece : {size_t{1}, size_t{2}, size_t{7}, size_t{4096}, bytes.size() + 1})
    EXPECT_EQ(read(backend, bytes, piece, 12, stream), wanted) << "in pieces of " << piece;
}

TEST(LabelReader, Lines) {
  expect(LaunchBackend::kMpirun, "[1,0]<stdout>:one\n[1,11]<stdout>:two\n[1,0]<stdout>:\n[1,0]<stdout>:three\n",
         {{0, "one\n\nthree\n"}, {11, "two\n"}});
  expect(LaunchBackend::kSrun, " 0: one\n11: two\n 0: \n 0: three\n", {{0, "one\n\nthree\n"}, {11, "two\n"}});
}

TEST(LabelReader, LinesThatWereNotWholeAreMadeWhole) {
  const std::string x(4096, 'x');
  expect(LaunchBackend::kMpirun,
         "[1,0]<stdout>:" + x + "[1,1]<stdout>:" + x + "[1,0]<stdout>:end\n[1,1]<stdout>:y[1,1]<stdout>:z",
         {{0, x + "end\n"}, {1, x + "yz"}});
}

TEST(LabelReader, LongLinesOfSrun) {
  const std::string x(1024, 'x');
  expect(LaunchBackend::kSrun, "1: " + x + "\n0: a\n1: " + x + "\n1: rest\n1: " + x + "\n1: \n",
         {{0, "a\n"}, {1, x + x + "rest\n" + x + "\n"}});
}

TEST(LabelReader, TheBackendsOwnMessages) {
  expect(LaunchBackend::kMpirun, "mpirun noticed that [1,2] died\n[1,0]<stderr>:words\n--------\n",
         {{-1, "mpirun noticed that [1,2] died\n--------\n"}, {0, "words\n"}}, "stderr");
  expect(LaunchBackend::kSrun,
         "srun: error: n1: task 3: Exited with exit code 76\n0: words\nslurmstepd: error: x: y\n15: no such rank\n",
         {{-1, "srun: error: n1: task 3: Exited with exit code 76\nslurmstepd: error: x: y\n15: no such rank\n"},
          {0, "words\n"}});
}

TEST(LabelReader, WhatOnlyLooksLikeAMark) {
  expect(LaunchBackend::kMpirun, "[1,0]<stdout>:[1,1]<stderr>:a [1,99]<stdout>:b [1,]<stdout>: [1,1<stdout>:\n",
         {{0, "[1,1]<stderr>:a [1,99]<stdout>:b [1,]<stdout>: [1,1<stdout>:\n"}});
}

TEST(LabelReader, AnythingElseIsKeptByteForByte) {
  std::mt19937 random(7);
  std::string garbage;
  for (int i = 0; i < 300000; ++i) garbage += static_cast<char>(random());
  std::string marked;
  for (size_t start = 0; start < garbage.size(); start += 1000) {
    marked += "[1,3]<stdout>:";
    const std::string part = garbage.substr(start, 1000);
    for (size_t i = 0; i < part.size(); ++i) {
      marked += part[i];
      if (part[i] == '\n' && i + 1 < part.size()) marked += "[1,3]<stdout>:";
    }
  }
  for (const size_t piece : {size_t{97}, size_t{65536}, marked.size()})
    EXPECT_EQ(read(LaunchBackend::kMpirun, marked, piece), (Texts{{3, garbage}}));
}

TEST(LabelReader, LinesWithoutEndTakeNoMemoryWithoutEnd) {
  std::string marked;
  for (int i = 0; i < 1000; ++i) marked += "[1,0]<stdout>:" + std::string(4096, 'x');
  size_t pieces = 0, bytes = 0;
  LabelReader reader(LaunchBackend::kMpirun, "stdout", 1,
                     [&](int, const std::string& text) { ++pieces, bytes += text.size(); });
  for (size_t start = 0; start < marked.size(); start += 65536) reader.take(marked.substr(start, 65536));
  EXPECT_GE(pieces, 3u);
  reader.finish();
  EXPECT_EQ(bytes, 1000u * 4096u);
}

TEST(BackendErrors, AreExplainedWithTheWayOut) {
  JobCommand job;
  job.ranks = 9;
  EXPECT_NE(explain_backend_errors("There are not enough slots available in the system to satisfy the 9\nslots", job)
                .find("--oversubscribe"),
            std::string::npos);
  EXPECT_NE(explain_backend_errors("ORTE was unable to reliably start one or more daemons.\n", job).find("ssh"),
            std::string::npos);
  EXPECT_EQ(explain_backend_errors("ORTE has lost communication with a remote daemon.\n", job), "")
      << "its ranks have run";
  EXPECT_TRUE(has_lost_a_host("ORTE has lost communication with a remote daemon.\n"));
  EXPECT_EQ(explain_backend_errors(
                "mpirun noticed that process rank 1 with PID 0 on node a exited on signal 9 (Killed).", job),
            "");
}

}  // namespace
}  // namespace muster::launcher
