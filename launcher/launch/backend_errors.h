#pragma once

#include <string>

#include "launcher/launch/job_command.h"

namespace muster::launcher {

// What to do about it, when the last words of a starter (its own, on standard error) say that it could not start the
// ranks: no slots, a host that cannot be reached, an allocation that does not fit. A sentence or two; empty when they
// do not.
std::string starter_trouble(const std::string& words, const JobCommand& job);

// Whether they say that a host went away while the ranks ran, which mpirun ends with an exit code of its own.
bool has_lost_a_host(const std::string& words);

}  // namespace muster::launcher
