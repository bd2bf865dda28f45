#pragma once

#include <c10/core/Device.h>

#include <memory>
#include <string>

#include "distributed/communicator.h"

namespace muster::distributed {

// The same ranks as `control`, for tensors on GPUs: CUDA tensors go through NCCL on the current stream of `device`, CPU
// tensors and bytes through `control`, which must outlive the result. `device` is this rank's
// GPU, which bind_device() has made the current one; every rank must have its own, or share one as bind_device()
// allows.
//
// CUDA calls return before the work is done, so an error of a peer shows at a later call: that call then throws
// Error(kPeerFailed), as does one that NCCL has not accepted within collective_deadline(). After an error the
// communicator is aborted and every further CUDA call throws. Which collective each rank calls is compared for CPU
// tensors as `control` does; for CUDA tensors only with MUSTER_CHECK_COLLECTIVES=1 in the environment of every rank,
// because comparing makes the host wait. Without it a mismatch of CUDA calls hangs or gives wrong numbers.
//
// Collective. Throws SharedError(kPeerFailed) when the ranks cannot reach each other in time (half of
// collective_deadline()), Error(kUsage) when muster was built without CUDA.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, c10::Device device);

// Version of the NCCL library in use, as "2.28.9"; empty when built without CUDA.
std::string nccl_version();

}  // namespace muster::distributed
