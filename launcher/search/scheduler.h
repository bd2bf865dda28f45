#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "launcher/search/optuna_process.h"
#include "launcher/search/search_directory.h"
#include "launcher/search/spec.h"
#include "launcher/work/progress_line.h"
#include "launcher/work/work_source.h"

namespace muster::launcher {

// Hands out trials to the groups, on rank 0; the only one that talks to Optuna. Besides what every source answers:
//   "next"'s {"do": "train"} has "number" and "values"
//   {"op": "report", "number", "step", "value"} -> {"prune": bool, "stop": bool}
//       without a step: only asks whether to stop
//   {"op": "tell", "number", "state", "value", "reason"} -> {"keep_weights": bool, "drop_weights": [numbers]}
//   {"op": "leave", "number"} -> {}
//       the group has not finished it: it was asked to stop, or another job is working on it
class Scheduler final : public WorkSource {
 public:
  // opening: the request that opens the study, without this job's name. progress: shows what a person should see, and
  // must outlive this. Continues the trials that jobs which are gone have left running, and tidies the files that they
  // have left.
  Scheduler(const SearchDirectory& directory, nlohmann::json opening, ProgressLine& progress);

  nlohmann::json ask(const nlohmann::json& request) override;

  // How the search stands: Optuna's counts and best trial.
  nlohmann::json standing();
  // Throws Error(kInternal), with the first reason, when trials have ended, all have failed, none runs, and there was
  // time for more.
  void require_any_success();
  // Why there is no more to do although the budget has trials left; empty where there is no such reason.
  const std::string& ended_early() const { return ended_early_; }
  // Removes from all trials that have ended what is not to be kept.
  void tidy();

 private:
  using Clock = std::chrono::steady_clock;
  nlohmann::json next();
  nlohmann::json report(const nlohmann::json& request);
  nlohmann::json tell(const nlohmann::json& request);
  void find_orphans();
  bool adopt(nlohmann::json& trial);
  void show(const nlohmann::json& request, const nlohmann::json& standing);
  double seconds() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }

  const SearchDirectory& directory_;
  const Search& search_;
  ProgressLine& progress_;
  std::string job_;  // this one's name
  std::unique_ptr<Jobs::Claim> claim_;
  OptunaProcess optuna_;
  std::map<std::string, std::unique_ptr<Jobs::Claim>> taken_over_;  // of jobs that are gone
  struct Orphan {
    int64_t number;
    bool was_lost;
  };
  std::vector<Orphan> orphans_;  // trials that they left running, the next one last
  std::set<int64_t> active_;     // trials that groups of this job train
  std::set<std::string> reasons_shown_;
  std::string ended_early_;
  bool is_out_of_time_ = false;  // budget.hours
  bool stopping_ = false;
  int64_t ended_ = 0;
  Clock::time_point started_ = Clock::now();
};

}  // namespace muster::launcher
