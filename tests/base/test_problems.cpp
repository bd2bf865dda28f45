#include "base/problems.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace muster {
namespace {

std::string thrown(const Problems& problems, ExitCode code) {
  try {
    problems.throw_if_any(code);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  return "";
}

TEST(Problems, NoneIsNoError) { EXPECT_EQ(thrown(Problems("f"), ExitCode::kBadData), ""); }

TEST(Problems, LinesOfTheFileComeFirstInItsOrder) {
  Problems problems("f.txt");
  problems.at("--set x", "first without a line");
  problems.at_line(7, "late");
  problems.at("f.txt:3", "early");
  problems.at("other.txt:1", "of another file");
  problems.at_line(7, "late too");
  EXPECT_EQ(thrown(problems, ExitCode::kBadConfig),
            "f.txt: 5 problems:\n  f.txt:3: early\n  f.txt:7: late\n  f.txt:7: late too\n"
            "  --set x: first without a line\n  other.txt:1: of another file");
}

TEST(Problems, BeyondTheLimitTheyAreCounted) {
  Problems problems("f", 2);
  for (int line = 5; line > 0; --line) problems.at_line(line, "x");
  EXPECT_THAT(problems.lines(), testing::ElementsAre("f:1: x", "f:2: x", "... and 3 more"));
  EXPECT_EQ(thrown(problems, ExitCode::kBadData), "f: 5 problems:\n  f:1: x\n  f:2: x\n  ... and 3 more");
}

TEST(Problems, AStepMayThrowOne) {
  Problems problems("f");
  EXPECT_TRUE(problems.attempt([] {}));
  EXPECT_FALSE(problems.attempt([] { throw Problem("broken"); }));
  EXPECT_THROW(problems.attempt([] { throw std::runtime_error("something else"); }), std::runtime_error);
  EXPECT_EQ(thrown(problems, ExitCode::kBadData), "f: 1 problem:\n  broken");
}

}  // namespace
}  // namespace muster
