#pragma once

#include <memory>

#include "distributed/communicator.h"

namespace muster::distributed {

// All ranks of MPI_COMM_WORLD. Starts MPI, and ends it when destroyed. At most one may exist in a process.
std::unique_ptr<Communicator> make_mpi_communicator();

}  // namespace muster::distributed
