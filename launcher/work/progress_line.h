#pragma once

#include <chrono>
#include <string>

namespace muster::launcher {

// What a person sees of a job that works on many things: on a terminal one line that is rewritten, otherwise a plain
// line for each thing that has ended, at most one in a second. Goes to standard error. For use by one thread at a time.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine() { end(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // How it stands now.
  void show(const std::string& text);
  // A line that stays and is never left out.
  void note(const std::string& text);
  // Shows what is still to be shown; what is written next begins a line.
  void end();

 private:
  using Clock = std::chrono::steady_clock;
  void write();

  const bool terminal_;
  std::string waiting_;  // not shown yet
  bool drawn_ = false;
  Clock::time_point last_;
};

}  // namespace muster::launcher
