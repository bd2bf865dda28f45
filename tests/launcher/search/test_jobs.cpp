// Jobs on one search are processes of their own here (fork), that begin, end and die at the same time.
#include "launcher/search/jobs.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <stdexcept>

#include "base/error.h"
#include "tests/helpers/temporary_folder.h"

using namespace muster;
using launcher::Jobs;

namespace {

void nothing(const std::string&) {}

// Runs `job` in a process of its own, which exits with 0 unless it throws.
template <class Job>
pid_t begin(const Job& job) {
  const pid_t process = fork();
  if (process != 0) return process;
  int code = 0;
  try {
    job();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "job %d: %s\n", getpid(), error.what());
    code = 1;
  }
  _exit(code);
}

bool ended_well(pid_t process) {
  int status = 0;
  return waitpid(process, &status, 0) == process && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

struct SearchJobs : testing::Test {
  TemporaryFolder directory;
  std::string folder = directory.path() / "jobs";
  Jobs jobs{folder};
};

TEST_F(SearchJobs, ALivingJobIsListedAndKept) {
  const auto claim = jobs.claim("one");
  EXPECT_EQ(jobs.names(), std::vector<std::string>{"one"});
  EXPECT_EQ(jobs.take_over("one", nothing), nullptr);
}

TEST_F(SearchJobs, OneThatHasEndedLeavesNothingAndWasNotLost) {
  jobs.claim("one").reset();
  EXPECT_TRUE(jobs.names().empty());
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  const auto claim = jobs.take_over("one", nothing);  // it was asked to stop, and its trials wait
  ASSERT_NE(claim, nullptr);
  EXPECT_FALSE(claim->was_lost());
}

TEST_F(SearchJobs, ALostOneIsTakenOverByOneOfMany) {
  ASSERT_TRUE(ended_well(begin([&] {
    const auto* lost = jobs.claim("one").release();
    (void)lost;
    _exit(0);
  })));
  ASSERT_EQ(jobs.names(), std::vector<std::string>{"one"});
  int ends[2], go[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(pipe(go), 0);
  std::vector<pid_t> takers;
  for (int i = 0; i < 6; ++i)
    takers.push_back(begin([&] {
      close(go[1]);
      const auto claim = jobs.take_over("one", nothing);
      char letter = !claim ? '-' : claim->was_lost() ? 'l' : 'e';
      if (write(ends[1], &letter, 1) != 1) throw std::runtime_error("no pipe");
      if (read(go[0], &letter, 1) < 0) throw std::runtime_error("no pipe");  // holds it until all have tried
    }));
  std::string letters;
  for (char letter; letters.size() < 6 && read(ends[0], &letter, 1) == 1;) letters += letter;
  close(go[1]);
  for (const auto taker : takers) EXPECT_TRUE(ended_well(taker));
  std::sort(letters.begin(), letters.end());
  EXPECT_EQ(letters, "-----l");
}

TEST_F(SearchJobs, AJobThatIsAboutToBeginIsLeftAlone) {
  std::filesystem::create_directories(folder + "/one");
  EXPECT_TRUE(jobs.names().empty());
}

TEST_F(SearchJobs, OneThatAnotherHasJustLookedAtWasNotLost) {
  std::filesystem::create_directories(folder + "/one");  // made by a job that is about to take it over as well
  const auto claim = jobs.take_over("one", nothing);
  ASSERT_NE(claim, nullptr);
  EXPECT_FALSE(claim->was_lost());
}

TEST_F(SearchJobs, WhatADyingJobHasNotRemovedIsRemovedByTheNext) {
  std::filesystem::create_directories(folder + "/.over-1-one");
  jobs.claim("two").reset();
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

TEST_F(SearchJobs, ManyBeginAndEndWhileOthersLookAtThem) {
  std::vector<pid_t> running;
  for (int i = 0; i < 4; ++i)
    running.push_back(begin([&] {
      for (int round = 0; round < 60; ++round) {
        const auto own = jobs.claim(std::to_string(getpid()) + "-" + std::to_string(round));
        std::map<std::string, std::unique_ptr<Jobs::Claim>> taken;
        for (const auto& name : jobs.names())
          if (auto claim = jobs.take_over(name, nothing)) taken[name] = std::move(claim);
        usleep(1000);
        for (const auto& [name, claim] : taken)
          if (!std::filesystem::exists(folder + "/" + name + "/lock"))
            throw std::runtime_error("somebody has removed the lock of " + name);
      }
    }));
  for (const auto job : running) EXPECT_TRUE(ended_well(job));
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}
