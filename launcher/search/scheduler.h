#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "distributed/communicator.h"
#include "distributed/lifeline.h"
#include "launcher/search/brain.h"
#include "launcher/search/search_directory.h"
#include "launcher/search/spec.h"

namespace muster::launcher {

// Where a group's first rank gets its work from and tells how it went. Requests and answers:
//   {"op": "next"}                                    -> {"do": "train", "number", "values", "resume"}, {"do": "wait"} (ask again), {"do": "end"}
//   {"op": "report", "number", "step", "value"}       -> {"prune": bool, "stop": bool}
//   {"op": "tell", "number", "state", "value", "reason", "seconds"} -> {"keep_weights": bool, "drop_weights": [numbers]}
//   {"op": "leave", "number"}                         -> {}    the group has not finished it: asked to stop, or another job works on it
//   {"op": "stopping"}                                -> {}    the job was asked to stop: no group begins another trial
class WorkSource {
 public:
  virtual ~WorkSource() = default;
  // Throws an Error that ends the job.
  virtual nlohmann::json ask(const nlohmann::json& request) = 0;
};

// Rank 0's: hands out trials to the groups, and alone speaks with Optuna. A thread of it answers the groups of other ranks, so nobody waits for another's trial.
class Scheduler final : public WorkSource {
 public:
  // opening: the request that opens the study, without this job's name. line: gets what a person should see. Goes on with the trials that jobs which are gone have left running.
  Scheduler(const SearchDirectory& directory, nlohmann::json opening, std::function<void(const std::string&)> line);
  ~Scheduler() override;

  // Answers the first ranks of other groups that connect by what this returns, until the destructor.
  std::string listen(int ranks, bool loopback);

  nlohmann::json ask(const nlohmann::json& request) override;

  // How the search stands: Optuna's counts and best trial.
  nlohmann::json standing();

 private:
  using Clock = std::chrono::steady_clock;
  nlohmann::json next();
  nlohmann::json report(const nlohmann::json& request);
  nlohmann::json tell(const nlohmann::json& request);
  void serve();

  void adopt_orphans();

  const SearchDirectory& directory_;
  const Search& search_;
  std::function<void(const std::string&)> line_;
  std::mutex mutex_;  // of all below but what the thread alone uses
  std::string job_;  // this one's name
  std::unique_ptr<training::RunLock> claim_;
  Brain brain_;
  std::map<std::string, std::unique_ptr<training::RunLock>> taken_over_;  // jobs that are gone
  std::vector<int64_t> orphans_;                                           // trials that they left running
  std::map<int64_t, Clock::time_point> active_;  // trials that groups of this job train
  bool stopping_ = false;
  int64_t ended_ = 0, failed_in_a_row_ = 0;
  Clock::time_point started_ = Clock::now();

  std::unique_ptr<distributed::Lifeline> line_to_groups_;
  std::thread thread_;
  std::atomic<bool> over_{false};
  std::string trouble_;  // an error that the thread met: the next ask() of rank 0 throws it
  distributed::ExitCode trouble_code_ = distributed::ExitCode::kInternal;
};

// Another group's first rank: asks rank 0.
class RemoteScheduler final : public WorkSource {
 public:
  // address: what Scheduler::listen() returned. Throws Error(kPeerFailed) when rank 0 cannot be reached.
  RemoteScheduler(int rank, int ranks, const std::string& address);
  nlohmann::json ask(const nlohmann::json& request) override;

 private:
  distributed::Lifeline line_;
};

}  // namespace muster::launcher
