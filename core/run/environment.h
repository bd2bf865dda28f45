#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "distributed/communicator.h"

namespace muster::run {

// What environment.json holds: versions, commit, command line, and per rank its host, process id and what `rank` says
// of it. `job`: more about the job, the same on every rank. The result is the same on every rank. Collective.
nlohmann::json describe_environment(distributed::Communicator& communicator, const std::string& command_line,
                                    const nlohmann::json& rank, const nlohmann::json& job);

}  // namespace muster::run
