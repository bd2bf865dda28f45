#pragma once

#include <functional>

#include "distributed/communicator.h"

namespace muster::launcher {

// Connects this process to its job and runs `work` on it. An Error that all ranks share ends every rank in good order
// with its code; anything else on one rank of several prints a message with the rank's number and takes the whole job
// down, because the others wait for it in a collective.
void run_job(const std::function<void(distributed::Communicator&)>& work);

}  // namespace muster::launcher
