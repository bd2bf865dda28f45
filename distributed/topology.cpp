#include "distributed/topology.h"

#include <hwloc.h>

#include <algorithm>
#include <iterator>

#include "base/error.h"

namespace muster::distributed {
namespace {

CpuSet cpus_of(hwloc_const_cpuset_t set) {
  CpuSet cpus;
  for (int cpu = hwloc_bitmap_first(set); cpu >= 0; cpu = hwloc_bitmap_next(set, cpu)) cpus.push_back(cpu);
  return cpus;
}

}  // namespace

CpuSet common_cpus(const CpuSet& one, const CpuSet& other) {
  CpuSet both;
  std::set_intersection(one.begin(), one.end(), other.begin(), other.end(), std::back_inserter(both));
  return both;
}

std::string cpu_text(const CpuSet& cpus) {
  std::string text;
  for (size_t first = 0, last = 0; first < cpus.size(); first = last + 1) {
    for (last = first; last + 1 < cpus.size() && cpus[last + 1] == cpus[last] + 1;) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(cpus[first]) +
            (last > first ? "-" + std::to_string(cpus[last]) : "");
  }
  return text.empty() ? "none" : text;
}

struct Machine::Hwloc {
  hwloc_topology_t topology = nullptr;
  ~Hwloc() {
    if (topology) hwloc_topology_destroy(topology);
  }
};

Machine::Machine(bool pci) : hwloc_(std::make_unique<Hwloc>()) {
  bool ready = hwloc_topology_init(&hwloc_->topology) == 0;
  // PCI devices alone: looking for others would start CUDA and OpenCL.
  if (ready && pci)
    hwloc_topology_set_type_filter(hwloc_->topology, HWLOC_OBJ_PCI_DEVICE, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  ready = ready && hwloc_topology_load(hwloc_->topology) == 0;
  if (!ready)
    throw Error(ExitCode::kUsage,
                "hwloc cannot read the topology of this machine; if HWLOC_XMLFILE or HWLOC_SYNTHETIC is set, it may be "
                "wrong (lstopo shows)");
  const auto all = [&](hwloc_obj_type_t type) {
    std::vector<CpuSet> sets;
    for (hwloc_obj_t each = nullptr; (each = hwloc_get_next_obj_by_type(hwloc_->topology, type, each));)
      if (auto cpus = cpus_of(each->cpuset); !cpus.empty() && std::count(sets.begin(), sets.end(), cpus) == 0)
        sets.push_back(std::move(cpus));
    if (sets.empty()) sets.push_back(cpus_of(hwloc_topology_get_topology_cpuset(hwloc_->topology)));
    return sets;
  };
  topology_ = {all(HWLOC_OBJ_PACKAGE), all(HWLOC_OBJ_NUMANODE), all(HWLOC_OBJ_CORE)};
}

Machine::~Machine() = default;

CpuSet Machine::allowed() const {
  const hwloc_cpuset_t set = hwloc_bitmap_alloc();
  if (hwloc_get_cpubind(hwloc_->topology, set, HWLOC_CPUBIND_PROCESS) != 0)
    hwloc_bitmap_copy(set, hwloc_topology_get_topology_cpuset(hwloc_->topology));
  hwloc_bitmap_and(set, set, hwloc_topology_get_topology_cpuset(hwloc_->topology));
  const CpuSet cpus = cpus_of(set);
  hwloc_bitmap_free(set);
  return cpus;
}

CpuSet Machine::cpus_near(const std::string& pci_device) const {
  const hwloc_obj_t device = hwloc_get_pcidev_by_busidstring(hwloc_->topology, pci_device.c_str());
  if (!device) return {};
  const hwloc_obj_t place = hwloc_get_non_io_ancestor_obj(hwloc_->topology, device);
  return place && place->cpuset ? cpus_of(place->cpuset) : CpuSet{};
}

bool Machine::bind(const CpuSet& cpus) const {
  const hwloc_cpuset_t set = hwloc_bitmap_alloc();
  for (const int cpu : cpus) hwloc_bitmap_set(set, static_cast<unsigned>(cpu));
  const bool bound = hwloc_set_cpubind(hwloc_->topology, set, HWLOC_CPUBIND_PROCESS) == 0;
  hwloc_bitmap_free(set);
  return bound;
}

}  // namespace muster::distributed
