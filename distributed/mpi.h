#pragma once

#include <cstdint>
#include <memory>

#include "distributed/communicator.h"

namespace muster::distributed {

// All ranks of MPI_COMM_WORLD; CPU tensors. Starts MPI, and ends it when destroyed. At most one may exist in a process.
// With several ranks its watchdog (watchdog.h) runs for as long. Destruction is collective.
// A failure that MPI reports is Error(kPeerFailed).
// `largest_bytes`: the most that one call of MPI, whose counts are int, gets; larger data is sent in pieces. Smaller
// only in tests.
std::unique_ptr<Communicator> make_mpi_communicator(int64_t largest_bytes = int64_t{1} << 30);

}  // namespace muster::distributed
