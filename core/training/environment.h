#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "distributed/communicator.h"

namespace muster::training {

// Cores that this process may use (its affinity mask).
int usable_cores();

// Sets the number of threads of this rank: `requested`, or with 0 the cores this process may use, shared among the ranks of the
// machine when they are not bound to cores of their own. Returns it.
int set_threads(int requested, const distributed::Communicator& communicator);

// What environment.json holds: versions, commit, command line, and per rank host, process id, threads and device. The same on every
// rank. Collective.
nlohmann::json describe_environment(distributed::Communicator& communicator, const std::string& command_line, int threads);

}  // namespace muster::training
