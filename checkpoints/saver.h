#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/retention.h"

namespace muster::checkpoints {

// What became of a save; the same on every rank.
struct SaveOutcome {
  uint64_t step = 0;
  bool committed = false;
  std::string error;         // when it was not: which ranks, what and what to do; when it was: why older ones that are
                             // superfluous are still there
  double stall_seconds = 0;  // for which training stood still, the longest of all ranks
  double write_seconds = 0;  // from the start of writing to the commit
  uint64_t bytes = 0;
};

// Saves checkpoints of a state that every rank holds whole; each rank writes its share of it. Training only waits while
// a rank's share is copied (on GPUs: into pinned memory); a thread writes it while training goes on. One save is in
// flight at a time: the next one waits for it. A save that fails leaves no trace but its message, and the older
// checkpoints as they are; those are only removed after a newer one is committed.
//
// The writer threads do not communicate. What they have to tell goes with words that the ranks exchange anyway at each
// step:
//     words = communicator.all_gather_bytes(... saver.word() ...);  outcome = saver.hear(words);
// All functions are for the thread that uses the communicator.
class CheckpointSaver {
 public:
  // folder: made if missing by the first save. before_commit: run by rank 0's writer thread when all files of a
  // checkpoint are written, to flush what else a run needs in order to go on from it; an Error from it fails the save.
  // communicator must outlive the saver.
  CheckpointSaver(const std::string& folder, const Retention& retention, bool asynchronous,
                  distributed::Communicator& communicator, std::function<void()> before_commit = {});
  // Waits for this rank's writer; a save that is not committed by then is lost, and its files are left for
  // sweep_leftovers().
  ~CheckpointSaver();

  // Optional, before the first save: makes the memory that the share is copied into, in the background, so that
  // training does not wait for that. Only the shapes, dtypes and devices of `tensors` count. Not collective.
  void prepare(const std::vector<NamedTensor>& tensors);

  // Starts to save; not asynchronous: saves. All ranks give the same info and tensors (names, shapes, dtypes, values;
  // any device; they may change as soon as this returns). A save in flight is waited for first. Returns the outcomes
  // that became known in here. Never throws for a disk: that is an outcome. Collective.
  std::vector<SaveOutcome> save(const CheckpointInfo& info, const std::vector<NamedTensor>& tensors);

  bool in_flight() const;
  // What this rank has to tell the others now; often empty. Each word must be heard by all, in the order they were
  // asked for.
  std::string word();
  // All ranks' words, in rank order. An outcome as soon as there is one.
  std::optional<SaveOutcome> hear(const std::vector<std::string>& words);
  // Waits for the save in flight, if there is one. Collective.
  std::optional<SaveOutcome> finish();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace muster::checkpoints
