#include "base/process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>

namespace {

using muster::Child;
using muster::ChildOptions;
using muster::InteractiveProcess;
using muster::ProcessOptions;
using muster::ProcessResult;
using muster::run_process;
using muster::Stream;
using testing::ElementsAre;

ProcessResult shell(const std::string& script, const ProcessOptions& options = {}) {
  return run_process({"/bin/sh", "-c", script}, options);
}

double seconds_of(const std::function<void()>& what) {
  const auto begin = std::chrono::steady_clock::now();
  what();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

bool exists(pid_t process) { return kill(process, 0) == 0; }

// In a process of its own, because signal handlers and subreapers stay. Its exit code.
int in_another_process(const std::function<int()>& what) {
  const pid_t child = fork();
  if (child == 0) _exit(what());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

TEST(Process, CapturesBothStreamsAndTheExitCode) {
  const auto result = shell("echo out; echo err >&2; exit 7");
  EXPECT_EQ(result.code, 7);
  EXPECT_EQ(result.start_error, 0);
  EXPECT_EQ(result.output, "out\n");
  EXPECT_EQ(result.errors, "err\n");
  EXPECT_EQ(result.answer(), "out\nerr");
  EXPECT_EQ(shell("echo out; echo err >&2").answer(), "out");
  EXPECT_EQ(shell("kill -KILL $$").code, 128 + SIGKILL);
}

TEST(Process, LosesNothingOfMuchOutput) {
  const auto result = shell("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done");
  EXPECT_EQ(result.output.substr(0, 14), "line 0\nline 1\n");
  EXPECT_EQ(result.output.size(), 20000 * 6 + 10 + 90 * 2 + 900 * 3 + 9000 * 4 + 10000 * 5);
}

TEST(Process, KeepsTheEndOfWhatExceedsTheLimit) {
  ProcessOptions options;
  options.capture_limit = 100;
  const auto result = shell("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done", options);
  EXPECT_EQ(result.output.size(), 100u);
  EXPECT_THAT(result.output, testing::EndsWith("line 1998\nline 1999\n"));
}

TEST(Process, GivesLinesAndBytes) {
  std::vector<std::string> lines;
  ProcessOptions options;
  options.on_line = [&](const std::string& line) { lines.push_back(line); };
  EXPECT_EQ(shell("printf 'one\\ntw'; echo trouble >&2; sleep 0.1; printf 'o\\n\\nunfinished'", options).errors,
            "trouble\n");
  EXPECT_THAT(lines, ElementsAre("one", "two", "", "unfinished"));

  std::string output, errors;
  options.on_bytes = [&](Stream stream, const std::string& bytes) {
    (stream == Stream::kOutput ? output : errors) += bytes;
  };
  int idle = 0;
  options.on_idle = [&] { ++idle; };
  EXPECT_EQ(shell("printf out; printf err >&2", options).output, "");
  EXPECT_EQ(output, "out");
  EXPECT_EQ(errors, "err");
  EXPECT_GT(idle, 0);
}

TEST(Process, ReadsNothingOrTheGivenBytes) {
  EXPECT_EQ(run_process({"cat"}).output, "");
  ProcessOptions options;
  options.input = ProcessOptions::Input::kBytes;
  options.input_bytes = std::string(1 << 20, 'x') + std::string("\0 end", 5);  // more than a pipe holds
  EXPECT_EQ(run_process({"cat"}, options).output, options.input_bytes);
  EXPECT_EQ(run_process({"true"}, options).code, 0) << "a program that does not read its input";
}

TEST(Process, PassesArgumentsAsTheyAre) {
  EXPECT_EQ(run_process({"printf", "%s|", "a b", "$HOME", "'", ""}).output, "a b|$HOME|'||");
}

TEST(Process, SetsAndRemovesVariables) {
  setenv("MUSTER_TEST_REMOVED", "here", 1);
  setenv("MUSTER_TEST_CHANGED", "old", 1);
  setenv("MUSTER_TEST_KEPT", "kept", 1);
  ProcessOptions options;
  options.environment = {{"MUSTER_TEST_CHANGED", "new = 1"}, {"MUSTER_TEST_ADDED", ""}};
  options.removed = {"MUSTER_TEST_REMOVED"};
  const auto result = shell(
      "echo ${MUSTER_TEST_REMOVED-none}/$MUSTER_TEST_CHANGED/${MUSTER_TEST_ADDED-none}/$MUSTER_TEST_KEPT", options);
  EXPECT_EQ(result.output, "none/new = 1//kept\n");
  EXPECT_STREQ(getenv("MUSTER_TEST_CHANGED"), "old") << "this process keeps its own";
}

TEST(Process, TellsMissingProgramsApart) {
  const auto result = run_process({"no-such-program-of-muster", "x"});
  EXPECT_EQ(result.code, 127);
  EXPECT_EQ(result.start_error, ENOENT);
  EXPECT_EQ(result.answer(), "there is no no-such-program-of-muster on the PATH");
  EXPECT_EQ(run_process({"/etc/passwd"}).start_error, EACCES);
  EXPECT_EQ(run_process({"/etc/passwd"}).answer(), "/etc/passwd cannot be run: Permission denied");
  EXPECT_EQ(shell("exit 127").start_error, 0);
}

TEST(Process, EndsAtTheTimeLimit) {
  ProcessOptions options;
  options.time_limit = 0.2;
  ProcessResult result;
  EXPECT_LT(seconds_of([&] { result = shell("while true; do echo busy; sleep 0.05; done", options); }), 3);
  EXPECT_TRUE(result.timed_out);
  EXPECT_FALSE(result.silent);
  EXPECT_EQ(result.code, 128 + SIGTERM);
  // One that ignores SIGTERM, with a child that holds its output open.
  options.grace = 0.3;
  options.own_group = true;
  EXPECT_LT(seconds_of([&] { result = shell("trap '' TERM; while true; do sleep 0.05; done", options); }), 3);
  EXPECT_EQ(result.code, 128 + SIGKILL);
  options.time_limit = 30;
  EXPECT_FALSE(shell("true", options).timed_out);
}

TEST(Process, EndsAtTheSilenceLimit) {
  ProcessOptions options;
  options.silence_limit = 0.4;
  EXPECT_FALSE(shell("for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done", options).silent) << "0.6 s, with lines";
  const auto result = shell("echo 1; while true; do printf .; sleep 0.05; done", options);
  EXPECT_TRUE(result.silent) << "no whole line";
  EXPECT_FALSE(result.timed_out);
  EXPECT_EQ(result.code, 128 + SIGTERM);
}

TEST(Process, DoesNotWaitForWhoeverInheritedItsOutput) {
  ProcessResult result;
  EXPECT_LT(seconds_of([&] { result = shell("sleep 20 & echo $!"); }), 5);
  const pid_t left = std::stoi(result.output);
  EXPECT_TRUE(exists(left));
  kill(left, SIGKILL);
}

TEST(Process, LeavesNoOrphans) {
  EXPECT_EQ(in_another_process([] {
              ProcessOptions options;
              options.ends_orphans = true;
              options.grace = 0.3;
              const auto result =
                  shell("setsid sleep 20 & setsid sleep 20 & echo $!; (sleep 0.2; echo late) &", options);
              const auto line_end = result.output.find('\n');
              if (exists(std::stoi(result.output))) return 1;
              return result.output.substr(line_end) == "\nlate\n" ? 0 : 2;  // also what they wrote meanwhile
            }),
            0);
}

TEST(Process, BlockedAndIgnoredSignalsDoNotReachIt) {
  const std::string script = "kill -USR2 $$; kill -TERM $$; kill -INT $$; kill -USR1 $$; echo alive";
  EXPECT_EQ(shell(script).code, 128 + SIGUSR2);
  ProcessOptions options;
  options.blocked = muster::stop_signals();
  EXPECT_EQ(shell(script, options).output, "alive\n");
  options.blocked.clear();
  options.ignored = muster::stop_signals();
  EXPECT_EQ(shell(script, options).output, "alive\n");
}

TEST(Process, SignalsHaveTheirDefaultActionInIt) {
  EXPECT_EQ(in_another_process([] {
              std::signal(SIGINT, SIG_IGN);
              std::signal(SIGPIPE, SIG_IGN);
              sigset_t all;
              sigfillset(&all);
              sigprocmask(SIG_SETMASK, &all, nullptr);
              const std::string status = run_process({"cat", "/proc/self/status"}).output;
              const bool blocks = status.find("\nSigBlk:\t0000000000000000\n") == std::string::npos;
              const bool ignores = status.find("\nSigIgn:\t0000000000000000\n") == std::string::npos;
              return (blocks ? 1 : 0) + (ignores ? 2 : 0);
            }),
            0);
}

TEST(Process, InheritsNoDescriptors) {
  const int open_file = dup(0);
  const std::string script = "[ -e /proc/self/fd/" + std::to_string(open_file) + " ] && echo inherited";
  EXPECT_EQ(shell(script).output, "");
  ProcessOptions options;
  options.inherits_descriptors = true;
  EXPECT_EQ(shell(script, options).output, "inherited\n");
  close(open_file);
}

TEST(Process, ForwardsStopsAsUsr2AndThenTerm) {
  const auto stop_after_start = [](int first, int second, const std::string& trap, bool interrupts) {
    return in_another_process([=] {
      ProcessOptions options;
      options.on_stop = ProcessOptions::OnStop::kForward;
      options.ends_by_interrupts = interrupts;
      options.own_group = true;
      std::string seen;
      options.on_bytes = [&](Stream, const std::string& bytes) {
        seen += bytes;
        if (bytes.find("ready") != std::string::npos) raise(first);
        if (bytes.find("usr2") != std::string::npos && second) raise(second);
      };
      const auto result = shell(trap + "echo ready; while true; do sleep 0.05; done", options);
      if (!result.stopped) return 100;
      // Nothing is started any more.
      if (run_process({"true"}, options).code != 128 + SIGUSR2) return 101;
      return result.code;
    });
  };
  EXPECT_EQ(stop_after_start(SIGTERM, 0, "trap 'exit 75' USR2; ", false), 75);
  EXPECT_EQ(stop_after_start(SIGHUP, 0, "trap 'exit 75' USR2; ", false), 75);
  const std::string deaf = "trap 'echo usr2' USR2; trap 'exit 5' TERM; trap 'exit 6' INT; ";
  EXPECT_EQ(stop_after_start(SIGTERM, SIGTERM, deaf, false), 5);
  EXPECT_EQ(stop_after_start(SIGINT, SIGINT, deaf, false), 5);
  EXPECT_EQ(stop_after_start(SIGTERM, SIGTERM, deaf, true), 6);
  // srun: three SIGINTs, of which only the first comes from a handler.
  const std::string srun = "n=0; trap 'echo usr2' USR2; trap 'n=$((n+1)); [ $n -lt 3 ] || exit 6' INT; ";
  EXPECT_EQ(stop_after_start(SIGTERM, SIGTERM, srun, true), 6);
  // Asked again each second: the first request is lost on this one.
  EXPECT_EQ(stop_after_start(SIGTERM, 0, "n=0; trap 'n=$((n+1)); [ $n -lt 2 ] || exit 75' USR2; ", false), 75);
}

TEST(Process, EndsOnCaughtStops) {
  EXPECT_EQ(in_another_process([] {
              muster::catch_stops({SIGINT, SIGTERM, SIGHUP, SIGPIPE});
              ProcessOptions options;
              options.on_stop = ProcessOptions::OnStop::kEnd;
              options.silence_limit = 20;
              options.on_line = [](const std::string&) { raise(SIGPIPE); };
              const auto result = shell("echo ready; sleep 20", options);
              return result.stopped && !result.silent && muster::caught_stops() == 1 ? result.code : 1;
            }),
            128 + SIGTERM);
}

TEST(Process, DiesWithItsParent) {
  int both[2];
  ASSERT_EQ(pipe(both), 0);
  EXPECT_EQ(in_another_process([&] {
              ChildOptions options;
              options.death_signal = SIGTERM;
              options.streams[1] = both[1];
              new Child({"/bin/sh", "-c", "trap 'echo ended; exit' TERM; echo ready; while true; do sleep 0.05; done"},
                        options);  // never destroyed
              char ready[6];
              return read(both[0], ready, 6) == 6 ? 0 : 1;
            }),
            0);
  close(both[1]);
  std::string rest;
  char byte;
  while (read(both[0], &byte, 1) == 1) rest += byte;
  close(both[0]);
  EXPECT_EQ(rest, "ended\n");
}

TEST(Process, AChildThatNobodyNeedsAnyMoreIsKilled) {
  pid_t process = 0;
  {
    Child child({"sleep", "20"}, {});
    process = child.id();
    EXPECT_FALSE(child.exit_code());
    EXPECT_FALSE(child.wait(0.1));
  }
  EXPECT_FALSE(exists(process));
}

TEST(InteractiveProcess, AnswersLineByLine) {
  InteractiveProcess echo({"/bin/sh", "-c", "while read line; do echo \"<$line>\"; done"}, {});
  EXPECT_EQ(echo.start_error(), 0);
  EXPECT_EQ(echo.exchange("one", 10), "<one>");
  const std::string much(300000, 'x');
  EXPECT_EQ(echo.exchange(much, 10), "<" + much + ">");
}

TEST(InteractiveProcess, NoAnswerFromOneThatEndsHangsOrIsMissing) {
  InteractiveProcess ended({"/bin/sh", "-c", "read line; exit 3"}, {});
  EXPECT_EQ(ended.exchange("hello", 10), std::nullopt);
  EXPECT_EQ(ended.exchange("hello", 10), std::nullopt);
  InteractiveProcess hangs({"sleep", "20"}, {});
  EXPECT_LT(seconds_of([&] {
              EXPECT_EQ(hangs.exchange("hello", 0.2), std::nullopt);
              hangs.end(0.1);
            }),
            5);
  InteractiveProcess missing({"no-such-program-of-muster"}, {});
  EXPECT_EQ(missing.start_error(), ENOENT);
  EXPECT_EQ(missing.exchange("hello", 1), std::nullopt);
}

TEST(InteractiveProcess, TheEndOfItsInputEndsIt) {
  const std::string file = testing::TempDir() + "muster-interactive-" + std::to_string(getpid());
  {
    InteractiveProcess process({"/bin/sh", "-c", "while read line; do echo ok; done; echo clean > '" + file + "'"}, {});
    EXPECT_EQ(process.exchange("one", 10), "ok");
  }
  EXPECT_EQ(run_process({"cat", file}).output, "clean\n");
  std::remove(file.c_str());
}

}  // namespace
