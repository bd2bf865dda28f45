#pragma once

#include <functional>
#include <string>

#include "launcher/search/search_directory.h"
#include "launcher/work/work_group.h"

namespace muster::launcher {

// Trains trial after trial with the ranks of `group` until there is none left. A trial that diverges, throws, runs out
// of memory or of time has failed, with its reason, and the next one follows; a disk that cannot be written, or a lost
// rank, ends the job. When the job is asked to stop, running trials are saved and continue in a later job. finalize,
// and what is thrown: as of WorkGroup::run. Collective over the job's ranks.
void run_trials(const SearchDirectory& directory, WorkGroup& group, const std::string& command_line,
                const std::function<void(bool stopped)>& finalize);

}  // namespace muster::launcher
