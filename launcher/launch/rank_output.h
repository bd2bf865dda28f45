#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "launcher/launch/job_command.h"

namespace muster::launcher {

// Takes apart what a starter writes to one of its streams, in which it has marked the ranks' output: mpirun
// --tag-output
// ("[1,3]<stdout>:" before each line and before each piece of one that was not whole), srun --label ("3: " before each
// line, long ones broken into pieces of 1,024 bytes). What has no mark is the starter's own.
class LabelReader {
 public:
  static constexpr int kStarter = -1;
  // Gets text of one rank in its order: a line with its end, or, of a very long one and of one that was never finished,
  // a piece.
  using Sink = std::function<void(int rank, const std::string& text)>;

  // stream_name: "stdout" or "stderr".
  LabelReader(LaunchBackend starter, const std::string& stream_name, int ranks, Sink sink);
  void take(const std::string& bytes);
  // No more will come: hands on what has not been finished.
  void finish();

 private:
  struct Mark {
    int rank;
    size_t begin, end;
  };
  // The first mark at or after `from`; rank kStarter: none.
  Mark find_mark(const std::string& text, size_t from) const;
  void take_line(const std::string& line);
  void take_line_of_srun(const std::string& line);
  void add(int rank, const std::string& text);

  LaunchBackend starter_;
  std::string after_rank_;
  int ranks_;
  Sink sink_;
  std::string raw_;                     // begun, not finished
  std::map<int, std::string> pending_;  // lines that each rank has begun
};

}  // namespace muster::launcher
