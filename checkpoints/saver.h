#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/retention.h"

namespace muster::checkpoints {

// The outcome of a save; the same on every rank.
struct SaveOutcome {
  uint64_t step = 0;
  bool committed = false;
  std::string error;         // not committed: which ranks failed, why and what to do; committed: why superfluous older
                             // checkpoints could not be removed
  double stall_seconds = 0;  // for which training stood still, the longest of all ranks
  double write_seconds = 0;  // from the start of writing to the commit
  uint64_t bytes = 0;
};

// Saves checkpoints of a state that every rank holds whole; each rank writes its share of it. Training only waits while
// a rank's share is copied (on GPUs: into pinned memory); a thread writes it while training continues. Where training
// waits for the whole save anyway, nothing is copied (but from GPUs). One save is in
// flight at a time: the next one waits for it. A save that fails leaves nothing but its message; older checkpoints are
// only removed after a newer one is committed.
//
// The writer threads do not communicate. Their messages travel with the bytes that the ranks exchange anyway at each
// step:
//     messages = communicator.all_gather_bytes(... saver.pending_message() ...);  outcome = saver.handle(messages);
// All functions are for the thread that uses the communicator.
class CheckpointSaver {
 public:
  // folder: made by the first save. before_commit: run by rank 0's writer thread when all files of a checkpoint are
  // written, to flush what else a run needs to resume from it; an Error from it fails the save. communicator must
  // outlive the saver.
  CheckpointSaver(const std::string& folder, const Retention& retention, bool asynchronous,
                  distributed::Communicator& communicator, std::function<void()> before_commit = {});
  // Waits for this rank's writer; a save that is not committed by then is lost, and sweep_leftovers() removes its
  // files.
  ~CheckpointSaver();

  // Optional, before the first save: allocates the memory that the share is copied into, in the background, so that
  // training does not wait for it. Only the shapes, dtypes and devices of `tensors` count. Not collective.
  void prepare(const std::vector<NamedTensor>& tensors);

  // Starts to save; `waits`, or not asynchronous: saves. All ranks give the same info and tensors (names, shapes,
  // dtypes, values; any device; they may change as soon as this returns). A save in flight is waited for first. Returns
  // the outcomes that became known in here. Never throws for a disk: that is an outcome. Collective.
  std::vector<SaveOutcome> save(const CheckpointInfo& info, const std::vector<NamedTensor>& tensors,
                                bool waits = false);

  bool in_flight() const;
  // This rank's next message to all ranks; often empty. Pass every message to handle() on all ranks, in order.
  std::string pending_message();
  // Takes all ranks' messages, in rank order. Returns the outcome once it is known.
  std::optional<SaveOutcome> handle(const std::vector<std::string>& messages);
  // Waits for the save in flight, if there is one. Collective.
  std::optional<SaveOutcome> finish();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace muster::checkpoints
