#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "distributed/communicator.h"
#include "distributed/cuda_devices.h"

// Which device each rank computes on.
namespace muster::distributed {

enum class WantedDevice { kAuto, kCpu, kCuda };

// The same on every rank.
struct DeviceRequest {
  WantedDevice wanted = WantedDevice::kAuto;  // kAuto: GPUs if every rank sees one, the CPU if none does
  bool share = false;                         // several ranks may use one GPU
};

// What one rank sees of its machine.
struct RankView {
  std::string host;
  VisibleGpus visible;
  int allocated = 0;  // GPUs that Slurm has given the job on this machine; 0: none, or not known
};

struct DeviceBinding {
  c10::Device device = c10::kCPU;
  std::string host;
  Gpu gpu;               // empty on the CPU
  int ranks_on_gpu = 0;  // on this rank's GPU, itself included
};

// The device of every rank, from what all ranks see: a rank takes the GPU at its place among the ranks that see the
// very same GPUs. So a rank that sees one GPU uses it, and ranks that all see every GPU of their machine take them in
// order of local rank. Pure: every rank computes the same from the same views. Throws SharedError(kUsage) when a rank
// has no GPU and others have, when ranks would have to share a GPU without `share` (also by Slurm's allocation alone,
// where this program cannot see GPUs), or when GPUs are wanted and there are none; the message names ranks, hosts and
// numbers.
std::vector<DeviceBinding> choose_devices(const std::vector<RankView>& views, const DeviceRequest& request);

// Collects what every rank sees, decides, and makes this rank's GPU its current device. When ranks share a GPU it sets
// NCCL_HOSTID, without which NCCL refuses them: call it before make_nccl_communicator(). Throws what choose_devices()
// throws. Collective.
DeviceBinding bind_device(Communicator& communicator, const DeviceRequest& request);

}  // namespace muster::distributed
