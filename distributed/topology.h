#pragma once

#include <memory>
#include <string>
#include <vector>

// The processors of this machine, by hwloc. Its variables HWLOC_SYNTHETIC and HWLOC_XMLFILE put a made-up machine in
// the place of this one: all of it is then allowed, and binding does nothing.
namespace muster::distributed {

// Numbers of hardware threads ("CPUs") as the operating system counts them, ascending.
using CpuSet = std::vector<int>;

CpuSet common_cpus(const CpuSet& one, const CpuSet& other);
// "0-3,8"; "none" for no CPU.
std::string cpu_text(const CpuSet& cpus);

struct MachineTopology {
  std::vector<CpuSet> packages;  // CPU sockets
  std::vector<CpuSet>
      numa_nodes;             // those that have CPUs; of several on the same CPUs (memories of different speed) one
  std::vector<CpuSet> cores;  // the hardware threads of each physical core
};

class Machine {
 public:
  // pci: look for PCI devices as well, which cpus_near() needs. Throws Error(kUsage) when hwloc cannot tell.
  explicit Machine(bool pci = false);
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  const MachineTopology& topology() const { return topology_; }
  // CPUs that this process may run on.
  CpuSet allowed() const;
  // CPUs of the NUMA node that a PCI device ("0000:1b:00.0") hangs on; empty: not known.
  CpuSet cpus_near(const std::string& pci_device) const;
  // Keeps all threads of this process on `cpus`. False when the system refuses.
  bool bind(const CpuSet& cpus) const;

 private:
  struct Hwloc;
  std::unique_ptr<Hwloc> hwloc_;
  MachineTopology topology_;
};

}  // namespace muster::distributed
