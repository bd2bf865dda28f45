#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"

namespace muster::checkpoints {

// Which checkpoints stay. One that any rule keeps stays; the newest whole one always does.
struct Retention {
  uint32_t keep_last = 2;   // at least 1
  uint32_t keep_best = 1;   // of those with a score, by score, the earlier one at a tie; 0: none for that reason
  uint64_t keep_every = 0;  // those whose step is a multiple; 0: none for that reason
};

// Those that no rule keeps, oldest first. Ones whose manifest cannot be read are never among them: a person may want to
// look. newest: the step of the newest one known to be whole; later ones, which a run that goes on has found damaged,
// are left alone and keep no place from others.
std::vector<FoundCheckpoint> superfluous(const std::string& folder, const Retention& retention,
                                         uint64_t newest = UINT64_MAX);

// Takes a committed checkpoint away: it loses its name at once, then its files. Throws Error(kIo).
void remove_checkpoint(const std::string& path);

// Sets a damaged one aside, under a hidden name that says so, for a person to look at. Throws Error(kIo).
void set_aside(const std::string& path);

// Removes what writers and removers that were killed have left in `folder`: everything hidden that this library makes,
// but damaged checkpoints that were set aside. Only for the job that holds the run. Returns the number of things
// removed.
int sweep_leftovers(const std::string& folder);

}  // namespace muster::checkpoints
