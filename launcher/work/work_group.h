#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>

#include "core/training/trainer.h"
#include "distributed/communicator.h"
#include "launcher/work/work_source.h"

namespace muster::launcher {

// How a piece of work ended.
struct Ending {
  enum Kind {
    kDone,
    kFailed,     // for a reason of its own: another piece may succeed
    kStopped,    // the job was asked to stop; it is saved
    kElsewhere,  // another job is working on it
  } kind = kDone;
  std::string reason;  // kFailed, kElsewhere
};

// Throws Error(kUsage) unless `ranks` can be split into groups of ranks_per_group; `field`: where that number is set.
void require_whole_groups(int ranks, uint32_t ranks_per_group, const std::string& field);

// The ranks of a job are split into groups, each of which trains one thing after another at its own pace. This is the
// group of this rank.
class WorkGroup {
 public:
  // training: of the experiment that all work varies. source: rank 0's, otherwise nullptr; must outlive it. The world
  // is a multiple of ranks_per_group. Collective over world, as the destructor is.
  WorkGroup(distributed::Communicator& world, uint32_t ranks_per_group, const config::Training& training,
            WorkSource* source);

  distributed::Communicator& ranks() { return *ranks_; }
  training::InProcessTrainer& trainer() { return *trainer_; }
  int groups() const { return world_.size() / ranks_->size(); }
  bool leads() const { return ranks_->rank() == 0; }

  // The source's answer, on every rank of the group; or the error that its first rank met. Collective over the group.
  nlohmann::json ask(const nlohmann::json& request);

  // When the answer says that another rank was asked to stop: as if this one had been. The run saves and stops.
  void stop_if_asked(const nlohmann::json& answer);

  // Gets work and gives it to `train`, a collective of the group, until there is none left or the job is asked to stop.
  // Then rank 0 calls `finalize`, which may throw; stopped: whether the job was asked to stop. In that case throws
  // SharedError(kRequeue) in the end; command: what continues the work. Collective over world.
  void run(const std::function<void(const nlohmann::json& task)>& train,
           const std::function<void(bool stopped)>& finalize, const std::string& command);

  // Trains, and says how it went. too_long: the reason when TrainOptions.time_limit ended it. An exception on some of
  // the group's ranks only, wherever it was thrown, ends it on all. What would end other work too (a disk that cannot
  // be written, a lost rank) is thrown. Collective over the group.
  Ending attempt(const std::function<void()>& training, const std::string& too_long);

 private:
  void work(const std::function<void(const nlohmann::json& task)>& train);
  void check_signals();
  SharedError shared(const std::exception& own);

  distributed::Communicator& world_;
  std::unique_ptr<distributed::Communicator> ranks_;
  std::unique_ptr<training::InProcessTrainer> trainer_;
  std::unique_ptr<WorkSource> connection_;
  WorkSource* source_;  // of the group's first rank, otherwise nullptr
  bool stopped_ = false;
};

// An exception's message as the reason of a failure: one line, not too long; "out of memory" in the same words whatever
// library ran out of it.
std::string reason_of(const std::string& message);

// Removes from the directory of a run that has ended what was needed to resume it: all but the files named and, with
// keep_weights, weights/best.safetensors.
void tidy_run(const std::string& run, const std::set<std::string>& kept, bool keep_weights);

}  // namespace muster::launcher
