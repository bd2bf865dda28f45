#pragma once

#include <string>
#include <vector>

#include "distributed/communicator.h"
#include "distributed/device.h"
#include "distributed/topology.h"

// Which cores each rank runs on. Decided by the ranks themselves, hence alike under every starter.
namespace muster::distributed {

enum class BindPolicy {
  kNuma,  // whole NUMA nodes: that of the rank's GPU, or on the CPU a share of all of them. Jobs beside each other do
          // not meet on the same few cores
  kCore,  // cores of its own, in equal shares: for a machine, or an allocation, that the job has to itself
  kNone,
};

// Name of the environment variable that chooses: numa (default), core or none.
constexpr const char* kBindVariable = "MUSTER_BIND";
// Throws Error(kUsage) for another word.
BindPolicy bind_policy(const std::string& word);

// What one rank knows of its machine.
struct CoreView {
  std::string host;
  MachineTopology machine;
  CpuSet allowed;   // CPUs that its process may run on so far
  CpuSet near_gpu;  // CPUs of the NUMA node of its GPU; empty: no GPU, or not known
};

struct Affinity {
  CpuSet cpus;         // that the rank is to run on
  int local_rank = 0;  // its place among the ranks of its host
  int local_size = 1;
  std::string why;  // one clause, e.g. "cores of its own", "already bound by whoever started it"
};

// The cores of every rank, from what all ranks see. Ranks of a host that may run on different CPUs have been bound by
// their starter and stay as they are; else the CPUs that they share are what is shared out. Where shares would be
// empty, a rank may use all that it was allowed. Pure: every rank computes the same from the same views.
std::vector<Affinity> choose_affinity(const std::vector<CoreView>& views, BindPolicy policy);

// Finds out what every rank sees, decides by MUSTER_BIND, and binds all threads of this process. Throws
// SharedError(kUsage) when MUSTER_BIND is wrong or differs between ranks. Collective.
Affinity bind_cores(Communicator& communicator, const DeviceBinding& device);

}  // namespace muster::distributed
