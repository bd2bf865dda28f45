#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"

namespace muster::checkpoints {

// Which checkpoints stay: those that any rule keeps, and always the newest whole one.
struct Retention {
  uint32_t keep_last = 2;   // at least 1
  uint32_t keep_best = 1;   // of those with a score, by score, the earlier one at a tie
  uint64_t keep_every = 0;  // those whose step is a multiple of this; 0: none
};

// Those that no rule keeps, oldest first. Checkpoints whose manifest cannot be read are never among them: a person may
// want to look at them. newest: the step of the newest one known to be whole; later ones, which a resumed run has found
// damaged, are ignored.
std::vector<FoundCheckpoint> superfluous(const std::string& folder, const Retention& retention,
                                         uint64_t newest = UINT64_MAX);

// Removes a committed checkpoint: first its name, then its files. Throws Error(kIo).
void remove_checkpoint(const std::string& path);

// Sets a damaged one aside, under a hidden name that says so, for inspection. Throws Error(kIo).
void set_aside(const std::string& path);

// Removes what killed processes have left in `folder`: every hidden folder of this library except damaged checkpoints
// that were set aside. Only for the job that holds the run. Returns the number of folders removed.
int sweep_leftovers(const std::string& folder);

}  // namespace muster::checkpoints
