#pragma once

#include <chrono>
#include <functional>

#include "distributed/collective_call.h"
#include "distributed/communicator.h"

namespace muster::distributed {

// A job whose ranks are threads of this process: runs `body` on `ranks` new threads, each with its communicator, and
// returns when all have ended. CPU tensors only; sums add in rank order, so their bits are always the same. For tests
// of what ranks do together, with any number of ranks and no mpirun; collectives are checked as everywhere.
//
// When a rank throws, or ends while others wait for it, those that wait throw Error(kPeerFailed), which names it. The
// first exception is thrown again here once all threads have ended. abort() ends this job by such an exception, not the
// process. The body sets LibTorch's per-thread settings (at::set_num_threads, grad mode) itself.
//
// deadline: for ranks that others wait for.
void run_as_threads(int ranks, const std::function<void(Communicator&)>& body,
                    std::chrono::duration<double> deadline = collective_deadline());

}  // namespace muster::distributed
