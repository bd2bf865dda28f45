#pragma once

#include <string>

#include "core/training/trainer.h"
#include "launcher/search/search_directory.h"
#include "launcher/work/work_group.h"

namespace muster::launcher {

// Trains trial after trial with the ranks of `group` until there is none left. A trial that diverges, throws, runs out of memory or of time has failed, with its reason, and the next
// one follows; a disk that cannot be written, or a rank that is lost, ends the job. Returns true when it was asked to stop: what it worked on is saved and goes on in a later job.
// Collective over the job's ranks.
bool run_trials(const SearchDirectory& directory, WorkGroup& group, training::TrialTrainer& trainer, const std::string& command_line);

}  // namespace muster::launcher
