#pragma once

#include <memory>
#include <string>
#include <vector>

#include "distributed/communicator.h"
#include "distributed/device.h"

// The processors of this machine, by hwloc, and which cores each rank runs on. That is decided by the ranks themselves,
// hence alike under every starter. The variables HWLOC_SYNTHETIC and HWLOC_XMLFILE of hwloc replace this machine by an
// imaginary one: all of it is then allowed, and binding does nothing.
namespace muster::distributed {

// Numbers of hardware threads ("CPUs") as the operating system counts them, ascending.
using CpuSet = std::vector<int>;

CpuSet common_cpus(const CpuSet& one, const CpuSet& other);
// "0-3,8"; "none" for no CPU.
std::string cpu_text(const CpuSet& cpus);

struct MachineTopology {
  std::vector<CpuSet> packages;  // CPU sockets
  // Those that have CPUs; of several on the same CPUs (memories of different speed) one.
  std::vector<CpuSet> numa_nodes;
  std::vector<CpuSet> cores;  // the hardware threads of each physical core
};

class Machine {
 public:
  // pci: look for PCI devices as well, which cpus_near() needs. Throws Error(kUsage) when hwloc fails.
  explicit Machine(bool pci = false);
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  const MachineTopology& topology() const { return topology_; }
  // CPUs that this process may run on.
  CpuSet allowed() const;
  // CPUs of the NUMA node that a PCI device ("0000:1b:00.0") is attached to; empty: not known.
  CpuSet cpus_near(const std::string& pci_device) const;
  // Keeps all threads of this process on `cpus`. False when the system refuses.
  bool bind(const CpuSet& cpus) const;

 private:
  struct Hwloc;
  std::unique_ptr<Hwloc> hwloc_;
  MachineTopology topology_;
};

enum class BindPolicy {
  kNuma,  // whole NUMA nodes: that of the rank's GPU, or on the CPU a share of all of them. Jobs on one machine do not
          // end up on the same few cores
  kCore,  // cores of its own, in equal shares: for a machine, or an allocation, that the job has to itself
  kNone,
};

// The environment variable that chooses: numa (default), core or none.
constexpr const char* kBindVariable = "MUSTER_BIND";
// Throws Error(kUsage) for another word.
BindPolicy bind_policy(const std::string& word);

// What one rank knows of its machine.
struct CoreView {
  std::string host;
  MachineTopology machine;
  CpuSet allowed;   // CPUs that its process may run on
  CpuSet near_gpu;  // CPUs of the NUMA node of its GPU; empty: no GPU, or not known
};

struct Affinity {
  CpuSet cpus;         // to run on
  int local_rank = 0;  // its place among the ranks of its host
  int local_size = 1;
  std::string why;  // one clause, e.g. "cores of its own", "already bound by whoever started it"
};

// The cores of every rank, from what all ranks see. Ranks of a host that may run on different CPUs have been bound by
// their starter and stay as they are; otherwise they divide the CPUs that they have in common. A rank whose share would
// be empty may use all CPUs that it was allowed. Pure: every rank computes the same from the same views.
std::vector<Affinity> choose_affinity(const std::vector<CoreView>& views, BindPolicy policy);

// Collects what every rank sees, decides by MUSTER_BIND, and binds all threads of this process. Throws
// SharedError(kUsage) when MUSTER_BIND is wrong or differs between ranks. Collective.
Affinity bind_cores(Communicator& communicator, const DeviceBinding& device);

}  // namespace muster::distributed
