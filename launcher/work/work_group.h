#pragma once

#include <functional>
#include <memory>
#include <string>

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
void require_whole_groups(int ranks, int ranks_per_group, const std::string& field);

// The ranks of a job are parted into groups, each of which trains one thing after another at its own pace. This is the group of this rank.
class WorkGroup {
 public:
  // source: rank 0's, otherwise nullptr; must outlive it. The world is a multiple of ranks_per_group. Collective over world, as the destructor is.
  WorkGroup(distributed::Communicator& world, int ranks_per_group, WorkSource* source);

  distributed::Communicator& ranks() { return *ranks_; }
  int groups() const { return world_.size() / ranks_->size(); }
  bool leads() const { return ranks_->rank() == 0; }

  // The source's answer, on every rank of the group; or the error that its first rank met. Collective over the group.
  nlohmann::json ask(const nlohmann::json& request);

  // As if this rank had been asked to stop, when the answer says that another one has: the run saves and stops.
  void heed(const nlohmann::json& answer);

  // Gets work and gives it to `train`, a collective of the group, until there is none left or the job is asked to stop. True, on every rank, when one was asked to stop. Collective over world.
  bool run(const std::function<void(const nlohmann::json& task)>& train);

  // Trains, and says how it went. too_long: the reason when TrainOptions.time_limit ended it. An exception on some of the group's ranks only, wherever it was thrown, ends it on all. What
  // would end other work too (a disk that cannot be written, a lost rank) is thrown. Collective over the group.
  Ending attempt(const std::function<void()>& training, const std::string& too_long);

 private:
  void work(const std::function<void(const nlohmann::json& task)>& train);
  distributed::Communicator& world_;
  std::unique_ptr<distributed::Communicator> ranks_;
  std::unique_ptr<WorkSource> connection_;
  WorkSource* source_;  // of the group's first rank, otherwise nullptr
  void heed_signals();
  distributed::SharedError shared(const std::exception& own);

  bool stopped_ = false;
};

// An exception's message as the reason of a failure: one line, not too long, and the words "out of memory" whoever has none left.
std::string reason_of(const std::string& message);

}  // namespace muster::launcher
