#pragma once

#include <string>

namespace muster::faults {

// The smallest thing that saves checkpoints: a few tensors that change at each of five steps and are saved after each,
// on ranks that are threads. Goes on from the newest checkpoint in `folder`. Writes to `report`, when all is done,
// "<step it went on from> <fingerprint of the tensors>". Returns the exit code that a program would end with; says why
// on standard error.
int run_saver(const std::string& folder, const std::string& report, int ranks, bool asynchronous);

}  // namespace muster::faults
