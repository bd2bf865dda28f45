// Jobs here are processes of their own (fork), as they are in the field: some on this machine, some on one that only
// seems to be another.
#include "core/run/run_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "tests/helpers/temporary_folder.h"

using namespace muster;
using namespace std::chrono_literals;
using run::LockSettings;
using run::RunLock;

namespace {

struct RunLocks : testing::Test {
  std::vector<std::string> files() const { return directory.names(); }
  nlohmann::json content() const { return nlohmann::json::parse(contents(folder + "/lock")); }
  // A lock like that of this process, but for some fields, and renewed so long ago.
  void leave_lock(const nlohmann::json& changes, std::chrono::seconds age = 0s) {
    {
      const RunLock lock(folder);
      left = content();
    }
    left.update(changes);
    std::ofstream(folder + "/lock") << left;
    struct timespec times[2];
    clock_gettime(CLOCK_REALTIME, &times[0]);
    times[0].tv_sec -= age.count();
    times[1] = times[0];
    utimensat(AT_FDCWD, (folder + "/lock").c_str(), times, 0);
  }

  TemporaryFolder directory;
  std::string folder = directory.path();
  nlohmann::json left;
};

LockSettings on(const std::string& host, std::chrono::milliseconds interval = 50ms) {
  LockSettings settings;
  settings.interval = interval;
  settings.host = host;
  settings.boot_id = "boot of " + host;
  return settings;
}

// A process that takes the lock, says so with a letter, and answers 'c' by what check() says, until it hears 'q'.
class Job {
 public:
  Job(const std::string& folder, const LockSettings& settings, const std::string& name = "mpirun 4711") {
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0) abort();
    process_ = fork();
    if (process_ == 0) {
      ::close(to[1]);
      ::close(from[0]);
      _exit(work(folder, settings, name, to[0], from[1]));
    }
    ::close(to[0]);
    ::close(from[1]);
    to_ = to[1];
    from_ = from[0];
    answer = hear();
  }
  ~Job() {
    kill(process_, SIGCONT);
    // Closing the pipe would not do: jobs begun later hold it as well.
    std::signal(SIGPIPE, SIG_IGN);
    EXPECT_TRUE(write(to_, "q", 1) == 1 || errno == EPIPE);
    waitpid(process_, nullptr, 0);
    ::close(to_);
    ::close(from_);
  }
  void signal(int number) {
    kill(process_, number);
    if (number == SIGKILL) waitid(P_PID, process_, nullptr, WEXITED | WNOWAIT);
    if (number == SIGSTOP) waitid(P_PID, process_, nullptr, WSTOPPED | WNOWAIT);
  }
  // "held" or the error's message.
  std::string check() {
    if (write(to_, "c", 1) != 1) return "";
    return hear();
  }
  pid_t process() const { return process_; }
  std::string answer;

 private:
  static int work(const std::string& folder, const LockSettings& settings, const std::string& name, int in, int out) {
    const auto say = [&](const std::string& text) { return write(out, text.c_str(), text.size() + 1); };
    try {
      RunLock lock(folder, {name, 0}, settings);
      say("held");
      for (char asked; read(in, &asked, 1) == 1 && asked == 'c';) {
        try {
          lock.check();
          say(lock.held() ? "held" : "not held");
        } catch (const muster::Error& error) {
          say(error.what());
        }
      }
    } catch (const muster::Error& error) {
      say(std::to_string(static_cast<int>(error.code())) + " " + error.what());
    }
    return 0;
  }
  std::string hear() const {
    std::string text;
    for (char letter; read(from_, &letter, 1) == 1 && letter != '\0';) text += letter;
    return text;
  }
  pid_t process_;
  int to_, from_;
};

TEST_F(RunLocks, SayWhoHasTheRunAndVanishWithTheirHolder) {
  {
    RunLock lock(folder, {"Slurm job 12", 3});
    lock.check();
    EXPECT_TRUE(lock.held());
    EXPECT_EQ(files(), std::vector<std::string>{"lock"});
    const auto text = content();
    EXPECT_EQ(text["process"], getpid());
    EXPECT_EQ(text["job"], "Slurm job 12");
    EXPECT_EQ(text["restarts"], 3);
    EXPECT_NE(text["command"].get<std::string>().find("unit_torch"), std::string::npos);
  }
  EXPECT_TRUE(files().empty());
}

TEST_F(RunLocks, RefuseASecondJobOfThisMachineAtOnce) {
  const Job first(folder, {});
  ASSERT_EQ(first.answer, "held");
  const auto begin = std::chrono::steady_clock::now();
  const Job second(folder, {});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);  // the interval is 15 s: it did not watch
  for (const std::string& said :
       {std::string("2 "), folder + " is in use by mpirun 4711", "process " + std::to_string(first.process()),
        content()["id"].get<std::string>(), std::string("sign of life"), std::string("--run-dir")})
    EXPECT_NE(second.answer.find(said), std::string::npos) << said << "\n" << second.answer;
  EXPECT_EQ(files(), std::vector<std::string>{"lock"});
}

TEST_F(RunLocks, AreTakenOverFromAProcessThatWasKilled) {
  Job first(folder, {});
  ASSERT_EQ(first.answer, "held");
  first.signal(SIGKILL);
  // What it would have left had it died a little earlier.
  std::filesystem::copy_file(folder + "/lock", folder + "/.lock.new-" + content()["id"].get<std::string>());
  std::string told;
  LockSettings settings;
  settings.tell = [&](const std::string& text) { told += text; };
  const auto begin = std::chrono::steady_clock::now();
  RunLock lock(folder, {"second", 0}, settings);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
  EXPECT_NE(told.find("taking over the run directory from mpirun 4711"), std::string::npos) << told;
  EXPECT_NE(told.find("that process is gone"), std::string::npos) << told;
  EXPECT_EQ(content()["job"], "second");
  EXPECT_EQ(files(), std::vector<std::string>{"lock"});
}

TEST_F(RunLocks, OfAnotherProcessThatGotTheSameNumberAreTakenOver) {
  leave_lock({{"process_start", 1}});
  RunLock lock(folder, {"second", 0});
  EXPECT_EQ(content()["job"], "second");
}

TEST_F(RunLocks, FromBeforeTheMachineRestartedAreTakenOver) {
  leave_lock({{"boot_id", "earlier"}, {"renewed_every_seconds", 15}}, 3600s);
  const auto begin = std::chrono::steady_clock::now();
  RunLock lock(folder, {"second", 0});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
  EXPECT_EQ(content()["job"], "second");
}

TEST_F(RunLocks, OfAnEarlierStartOfTheSameSlurmJobAreTakenOver) {
  leave_lock({{"host", "elsewhere"}, {"job", "Slurm job 7"}, {"restarts", 1}, {"renewed_every_seconds", 3600}});
  const auto begin = std::chrono::steady_clock::now();
  RunLock lock(folder, {"Slurm job 7", 2});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
  EXPECT_EQ(content()["restarts"], 2);
}

TEST_F(RunLocks, OfALiveJobElsewhereAreRespected) {
  Job first(folder, on("elsewhere", 200ms));
  ASSERT_EQ(first.answer, "held");
  const Job second(folder, on("here"));
  EXPECT_NE(second.answer.find("2 " + folder + " is in use by mpirun 4711 (host elsewhere, process"), std::string::npos)
      << second.answer;
  EXPECT_EQ(first.check(), "held");
}

TEST_F(RunLocks, OfAJobElsewhereThatStandsStillAreTakenOverAndItNotices) {
  auto first = std::make_unique<Job>(folder, on("elsewhere"));
  ASSERT_EQ(first->answer, "held");
  first->signal(SIGSTOP);
  Job second(folder, on("here"), "second");
  ASSERT_EQ(second.answer, "held");
  first->signal(SIGCONT);
  const std::string answer = first->check();
  EXPECT_NE(answer.find("has lost the run directory " + folder + ": second (host here, process"), std::string::npos)
      << answer;
  EXPECT_EQ(second.check(), "held");
  first.reset();
  EXPECT_EQ(content()["job"], "second") << "whoever lost a lock must not remove that of another";
}

// The local clock is not asked: a lock that seems years old, or from the future, lives when it is renewed and is dead
// when it is not.
TEST_F(RunLocks, DoNotDependOnTheClockOfAMachine) {
  leave_lock({{"host", "elsewhere"}, {"renewed_every_seconds", 0.05}}, -86400s);
  RunLock lock(folder, {"second", 0}, on("here"));
  EXPECT_EQ(content()["job"], "second");
}

TEST_F(RunLocks, ThatSomebodyRemovedAreLost) {
  RunLock lock(folder, {"first", 0}, on("here", 10ms));
  std::filesystem::remove(folder + "/lock");
  for (int i = 0; i < 500 && lock.held(); ++i) std::this_thread::sleep_for(10ms);
  EXPECT_FALSE(lock.held());
  EXPECT_THROW(lock.check(), muster::Error);
}

TEST_F(RunLocks, ThatMusterDidNotWriteAreLeftAlone) {
  std::ofstream(folder + "/lock") << "mine";
  try {
    RunLock lock(folder);
    FAIL();
  } catch (const run::RunDirInUse& error) {
    FAIL() << "no job has it: " << error.what();
  } catch (const muster::Error& error) {
    EXPECT_EQ(error.code(), muster::ExitCode::kUsage);
  }
  EXPECT_EQ(files(), std::vector<std::string>{"lock"});
}

TEST_F(RunLocks, LeftBehindGoToOneOfManyThatWantThem) {
  constexpr int kJobs = 8, kTimes = 50;
  for (int time = 0; time < kTimes; ++time) {
    // Every third time whoever took it over last has died over that: its claim must be taken over as well.
    leave_lock({{"process_start", 1}, {"job", "dead"}});
    if (time % 3 == 0) {
      auto claim = left;
      claim["id"] = std::string(32, 'c');
      std::ofstream(folder + "/.lock.after-" + left["id"].get<std::string>()) << claim;
    }
    int start[2], outcomes[2], end[2];
    ASSERT_EQ(pipe(start) | pipe(outcomes) | pipe(end), 0);
    for (int job = 0; job < kJobs; ++job) {
      if (fork() != 0) continue;
      ::close(start[1]);
      ::close(end[1]);
      char letter = 'h';
      if (read(start[0], &letter, 1) != 0) _exit(1);  // all begin when the pipe is closed
      std::unique_ptr<RunLock> lock;
      try {
        lock = std::make_unique<RunLock>(folder, run::JobIdentity{"job " + std::to_string(job), 0});
        letter = 'h';
      } catch (const run::RunDirInUse&) {
        letter = 'r';
      } catch (const muster::Error&) {
        letter = 'e';
      }
      if (write(outcomes[1], &letter, 1) != 1 || read(end[0], &letter, 1) != 0)
        _exit(1);  // holds it until all have tried
      try {
        if (lock) lock->check();
        lock.reset();
      } catch (const muster::Error&) {
        _exit(1);
      }
      _exit(0);
    }
    ::close(start[0]);
    ::close(start[1]);
    ::close(end[0]);
    std::string heard(kJobs, ' ');
    for (char& letter : heard) ASSERT_EQ(read(outcomes[0], &letter, 1), 1);
    for (const int descriptor : {end[1], outcomes[0], outcomes[1]}) ::close(descriptor);
    for (int job = 0, status; job < kJobs; ++job) {
      ASSERT_GT(wait(&status), 0);
      EXPECT_EQ(status, 0) << "a lock was lost";
    }
    std::sort(heard.begin(), heard.end());
    ASSERT_EQ(heard, "hrrrrrrr") << "time " << time << ": h held it, r was refused, e failed";
    ASSERT_TRUE(files().empty()) << testing::PrintToString(files());
  }
}

}  // namespace
