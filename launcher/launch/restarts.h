#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"

namespace muster::launcher {

// What ranks are to run: muster's arguments, and what restarting them needs to know of these.
struct RankCommand {
  std::vector<std::string> arguments;  // {"train", "experiment.txtpb", "--set", ...}
  std::string file;                    // the experiment, search or study; of resume: empty
  std::string directory;               // as given; empty: the default
  std::vector<std::string> overrides;  // --set
  bool resumes = false;                // train --resume auto

  // Whether it can continue an earlier start's work: train, resume, search run, study.
  bool can_continue() const;
  bool is_search() const;
  const std::string& name() const { return arguments[0]; }
};

// The exit code of a job whose mpirun ended with `code`: a rank's own code stays; for a rank that was killed or aborted
// it is kPeerFailed.
int job_exit_code(int code);

// Whether it may help to start a job that ended so again: after a defect, a failed disk, a lost rank. Not where it
// would fail or stop again in the same way.
bool is_worth_a_restart(int job_exit_code);

// The directory that such a command works in. Throws like config::load_experiment.
std::string directory_of(const RankCommand& command);

// Its arguments, changed so that it continues what an earlier start did: train gets "--resume auto"; the others do so
// anyway.
std::vector<std::string> continued(const RankCommand& command);

// The newest committed checkpoint's step; -1: there is none.
int64_t newest_step(const std::string& run_directory);

// How far a run has come, to be compared with how far it was: its newest checkpoint's step; before the first, a
// negative number that grows from kNoProgress with what its frozen encoders have done
// (core/training/frozen_features.h). newest: what newest_step() says.
constexpr int64_t kNoProgress = -1000000000000;
int64_t run_progress(const std::string& run_directory, int64_t newest);

// How far the command has come: grows as run_progress() does, and with every run that a search or a study begins.
struct JobProgress {
  int64_t amount = 0;
  std::string text;  // "newest checkpoint: step 120"
};
JobProgress progress_of(const RankCommand& command);

}  // namespace muster::launcher
