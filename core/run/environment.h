#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "distributed/communicator.h"

namespace muster::run {

// What environment.json holds: versions, commit, command line, and per rank its host, process id and what `rank` says
// of it. `job`: more about the job, the same on every rank. The result is the same on every rank. Collective.
nlohmann::json describe_environment(distributed::Communicator& communicator, const std::string& command_line,
                                    const nlohmann::json& rank, const nlohmann::json& job);

// Who computes where, as a table: rank, host, device, cores, threads. ranks: environment.json's list. Of more than 16
// ranks those of a host that differ in the number of their device or in their cores only share a row, and what is still
// longer than a screen is cut. No newline at the end.
std::string rank_table(const nlohmann::json& ranks);

}  // namespace muster::run
