#pragma once

#include <functional>
#include <memory>
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
    kElsewhere,  // another job is at it
  } kind = kDone;
  std::string reason;  // kFailed, kElsewhere
};

// Throws Error(kUsage) unless `ranks` can be parted into groups of ranks_per_group; `field`: where that number is set.
void require_whole_groups(int ranks, uint32_t ranks_per_group, const std::string& field);

// The ranks of a job are parted into groups, each of which trains one thing after another at its own pace. This is the
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

  // As if this rank had been asked to stop, when the answer says that another one has: the run saves and stops.
  void heed(const nlohmann::json& answer);

  // Gets work and gives it to `train`, a collective of the group, until there is none left or the job is asked to stop.
  // Then rank 0 calls `conclude`, which is told whether one was asked to stop and may throw. Throws
  // SharedError(kRequeue) in the end when one was; command: what goes on. Collective over world.
  void run(const std::function<void(const nlohmann::json& task)>& train,
           const std::function<void(bool stopped)>& conclude, const std::string& command);

  // Trains, and says how it went. too_long: the reason when TrainOptions.time_limit ended it. An exception on some of
  // the group's ranks only, wherever it was thrown, ends it on all. What would end other work too (a disk that cannot
  // be written, a lost rank) is thrown. Collective over the group.
  Ending attempt(const std::function<void()>& training, const std::string& too_long);

 private:
  void work(const std::function<void(const nlohmann::json& task)>& train);
  distributed::Communicator& world_;
  std::unique_ptr<distributed::Communicator> ranks_;
  std::unique_ptr<training::InProcessTrainer> trainer_;
  std::unique_ptr<WorkSource> connection_;
  WorkSource* source_;  // of the group's first rank, otherwise nullptr
  void heed_signals();
  SharedError shared(const std::exception& own);

  bool stopped_ = false;
};

// An exception's message as the reason of a failure: one line, not too long, and the words "out of memory" whoever has
// none left.
std::string reason_of(const std::string& message);

}  // namespace muster::launcher
