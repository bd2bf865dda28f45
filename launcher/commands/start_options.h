#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "launcher/launch/job_command.h"

namespace muster::launcher {

// The options of `launch` and `doctor` that say what to start, and where. default_ranks: what comes without -n, in
// words.
void add_start_options(CLI::App& command, JobRequest& job, const std::string& default_ranks);

}  // namespace muster::launcher
