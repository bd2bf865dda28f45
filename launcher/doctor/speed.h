#pragma once

#include "distributed/communicator.h"
#include "launcher/doctor/check.h"

namespace muster::launcher::doctor {

// "all_reduce_8B", "all_reduce_1MB", "all_reduce_64MB": time and bandwidth of sums over all ranks, as training takes
// them, and whether they are right. `machines`: on which the ranks are. Collective; report counts on rank 0.
void check_all_reduce(distributed::Communicator& communicator, size_t machines, const Report& report);

// "nccl", and the same as "gpu_all_reduce_8B" ..., where every rank sees a GPU. Collective.
void check_gpu_all_reduce(distributed::Communicator& communicator, size_t machines, const Report& report);

}  // namespace muster::launcher::doctor
