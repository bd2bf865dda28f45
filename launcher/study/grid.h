#pragma once

#include <chrono>
#include <set>
#include <string>
#include <vector>

#include "launcher/study/study_directory.h"
#include "launcher/work/progress_line.h"
#include "launcher/work/work_source.h"

namespace muster::launcher {

// Hands out a study's cells to the groups, on rank 0. Besides what every source answers:
//   "next"'s {"do": "train"} has "cell", an index into StudySpec::cells
//   {"op": "report"} -> {"stop": bool}    at each validation
//   {"op": "ended", "cell", "state": "done" | "failed" | "stopped" | "elsewhere", "reason"} -> {}
class Grid final : public WorkSource {
 public:
  // Cells that are trained already are not handed out. progress must outlive it.
  Grid(const StudyDirectory& directory, ProgressLine& progress);

  nlohmann::json ask(const nlohmann::json& request) override;

  struct Failure {
    size_t cell;
    std::string reason;
  };
  const std::vector<Failure>& failures() const { return failures_; }

 private:
  using Clock = std::chrono::steady_clock;
  nlohmann::json next();
  void ended(size_t cell, const std::string& state, const std::string& reason);

  const StudyDirectory& directory_;
  ProgressLine& progress_;
  std::vector<size_t> open_;                 // still to be trained, the next one last
  std::vector<size_t> elsewhere_;            // another job is working on them
  std::set<size_t> met_elsewhere_;           // also those that have come back
  Clock::time_point looked_ = Clock::now();  // at those of other jobs
  std::vector<Failure> failures_;
  int64_t running_ = 0, here_ = 0, done_ = 0;  // here_: trained by this job
  bool stopping_ = false;
  Clock::time_point started_ = Clock::now();
};

}  // namespace muster::launcher
