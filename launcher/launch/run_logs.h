#pragma once

#include <sys/stat.h>

#include <chrono>
#include <map>
#include <optional>
#include <string>

#include "launcher/launch/child.h"
#include "launcher/launch/rank_output.h"

namespace muster::launcher {

// RUN/logs/rank-<r>.log of one start of a job; RUN may also be the directory of a search. It is made by the ranks;
// until they have it (its environment.json or search.txtpb is new) the first megabytes are kept in memory. A start that
// never gets so far leaves nothing in it.
class RunLogs {
 public:
  // run_directory: empty for commands without one. header: a line that begins every log. is_ours: an earlier start of
  // this launcher has had the run.
  RunLogs(const std::string& run_directory, const std::string& header, bool is_ours);
  void add(int rank, const std::string& text);
  // Writes what there is, if the run directory is there by now. now: also when it has just been done.
  void write(bool now);
  // Ends lines that were never finished, and writes.
  void finish();
  bool are_begun() const { return begun_; }

 private:
  struct Identity {
    ino_t file;
    time_t seconds;
    long nanoseconds;
  };
  std::optional<Identity> newest_file() const;  // the one that every start of a job writes anew

  std::string run_directory_;
  std::string header_;
  std::optional<Identity> before_;
  bool begun_;
  bool failed_ = false;
  size_t held_ = 0, left_out_ = 0;
  std::map<int, std::string> texts_;  // still to be written
  std::map<int, bool> within_line_;
  std::chrono::steady_clock::time_point looked_{};
};

// Shows what a job writes: the first rank's lines as they are, others' after "[rank 3] ", the starter's own as they
// are; standard output and error apart. And keeps the logs.
class RankOutput : public OutputReader {
 public:
  RankOutput(const JobCommand& job, RunLogs logs);
  void take(Stream stream, const std::string& bytes) override;
  void idle() override { logs_.write(false); }
  // After the child's end.
  void finish();
  const RunLogs& logs() const { return logs_; }
  bool ranks_have_spoken() const { return ranks_have_spoken_; }
  // The last of what the starter itself wrote to standard error.
  const std::string& starter_says() const { return starter_says_; }

 private:
  void show(Stream stream, int rank, const std::string& text);

  RunLogs logs_;
  LabelReader out_, err_;
  std::map<int, int> within_line_;  // per stream: the rank whose line is not finished
  std::string starter_says_;
  bool ranks_have_spoken_ = false;
};

}  // namespace muster::launcher
