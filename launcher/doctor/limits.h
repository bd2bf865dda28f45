#pragma once

#include <vector>

#include "launcher/doctor/check.h"
#include "launcher/doctor/machine.h"

namespace muster::launcher::doctor {

// "open_files", "processes", "stack", "file_size", "address_space", "locked_memory", "shared_memory", "cores",
// "memory", "load", "host_name". several_hosts: the job spans machines, which must find each other.
std::vector<Finding> check_limits(const Machine& machine, bool several_hosts);

}  // namespace muster::launcher::doctor
