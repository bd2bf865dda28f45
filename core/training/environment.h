#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/training/compute.h"
#include "distributed/communicator.h"

namespace muster::training {

// "2026-01-31T12:00:00Z": as files of a run directory tell the time.
std::string utc_now();

// What environment.json holds: versions, commit, command line, and per rank host, process id, place on its host,
// device, cores, threads and why these cores. The same on every rank. Collective.
nlohmann::json describe_environment(distributed::Communicator& communicator, const std::string& command_line,
                                    const Compute& compute);

}  // namespace muster::training
