#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"

namespace muster::launcher {

// The exit code of a job whose mpirun ended with `code`: what ranks say stays; that one was killed or aborted is
// kPeerFailed.
int code_of_job(int code);

// Whether it may help to start a job again that ended so: after a defect, a failed disk, a lost rank. Not where it
// would fail or stop again in the same way.
bool is_worth_a_restart(int code_of_job);

// Whether an earlier start's work can be gone on with: train, resume, search run, study.
bool can_go_on(const std::vector<std::string>& command);

// The directory that such a command works in. Throws like config::load_experiment.
std::string directory_of(const std::vector<std::string>& command);

// `command`, such that it goes on with what an earlier start has done: train gets "--resume auto"; the others go on by
// themselves.
std::vector<std::string> continued(const std::vector<std::string>& command);

// The newest committed checkpoint's step; -1: there is none.
int64_t newest_step(const std::string& run_directory);

// How far the command has come: grows with every checkpoint, and with every run that a search or a study begins.
struct Advance {
  int64_t amount = 0;
  std::string text;  // "newest checkpoint: step 120"
};
Advance advance_of(const std::vector<std::string>& command);

}  // namespace muster::launcher
