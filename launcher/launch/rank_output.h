#pragma once

#include <sys/stat.h>

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/process.h"
#include "launcher/launch/job_command.h"

namespace muster::launcher {

// Separates what a launch backend writes to one of its streams by rank. Backends label the ranks' output: mpirun
// --tag-output ("[1,3]<stdout>:" before each line, and before each piece of a line that was not whole), srun --label
// ("3: " before each line; long lines are broken into pieces of 1,024 bytes). Text without a label is the backend's
// own.
class LabelReader {
 public:
  static constexpr int kBackend = -1;
  // Gets text of one rank in its order: a line with its end, or a piece of a very long or unfinished one.
  using Sink = std::function<void(int rank, const std::string& text)>;

  // stream_name: "stdout" or "stderr".
  LabelReader(LaunchBackend backend, const std::string& stream_name, int ranks, Sink sink);
  void take(const std::string& bytes);
  // No more will come: hands on what is unfinished.
  void finish();

 private:
  struct Label {
    int rank;
    size_t begin, end;
  };
  // The first label at or after `from`; rank kBackend: none.
  Label find_label(const std::string& text, size_t from) const;
  void take_line(const std::string& line);
  void take_srun_line(const std::string& line);
  void add(int rank, const std::string& text);

  LaunchBackend backend_;
  std::string after_rank_;
  int ranks_;
  Sink sink_;
  std::string raw_;                     // the start of a line
  std::map<int, std::string> pending_;  // the start of each rank's line
};

// RUN/logs/rank-<r>.log of one start of a job. RUN may also be the directory of a search. The ranks create it; until
// they have taken it (its environment.json or search.txtpb is new), the first megabytes are kept in memory. A start
// that never gets so far leaves nothing in it.
class RunLogs {
 public:
  // run_directory: empty for commands without one. header: a line that begins every log. is_ours: an earlier start by
  // this launcher has taken the run directory.
  RunLogs(const std::string& run_directory, const std::string& header, bool is_ours);
  void add(int rank, const std::string& text);
  // Writes what there is, if the run directory has been taken. now: even if that was done a moment ago.
  void write(bool now);
  // Ends unfinished lines, and writes.
  void finish();
  bool are_begun() const { return begun_; }

 private:
  using Identity = std::tuple<ino_t, time_t, long>;  // inode, and seconds and nanoseconds of the last change
  std::optional<Identity> newest_file() const;       // the one that every start of a job writes anew

  std::string run_directory_;
  std::string header_;
  std::optional<Identity> before_;
  bool begun_;
  bool failed_ = false;
  size_t held_ = 0, dropped_ = 0;
  std::map<int, std::string> texts_;  // to be written
  std::map<int, bool> within_line_;
  std::chrono::steady_clock::time_point last_write_{};
};

// Shows what a job writes, standard output and error apart: the first rank's lines and the backend's own as they are,
// others' after "[rank 3] ". Also keeps the logs.
class RankOutput {
 public:
  RankOutput(const JobCommand& job, RunLogs logs);
  void take(Stream stream, const std::string& bytes);
  void write_logs() { logs_.write(false); }
  // After the backend's end.
  void finish();
  const RunLogs& logs() const { return logs_; }
  bool ranks_have_written() const { return ranks_have_written_; }
  // The last of what the backend itself wrote to standard error.
  const std::string& backend_errors() const { return backend_errors_; }

 private:
  void show(Stream stream, int rank, const std::string& text);

  RunLogs logs_;
  LabelReader out_, err_;
  std::map<int, int> within_line_;  // per stream: the rank whose line is not finished
  std::string backend_errors_;
  bool ranks_have_written_ = false;
};

// What to do, if a backend's own errors say that it could not start the ranks: no slots, a host that cannot be reached,
// an allocation that is too small. One or two sentences; empty if they do not.
std::string explain_backend_errors(const std::string& errors, const JobCommand& job);

// Whether they say that a host went away while the ranks ran, which mpirun ends with an exit code of its own.
bool has_lost_a_host(const std::string& errors);

}  // namespace muster::launcher
