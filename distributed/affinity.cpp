#include "distributed/affinity.h"

#include <fmt/format.h>
#include <hwloc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace muster::distributed {
namespace {

CpuSet cpus_of(hwloc_const_cpuset_t set) {
  CpuSet cpus;
  for (int cpu = hwloc_bitmap_first(set); cpu >= 0; cpu = hwloc_bitmap_next(set, cpu)) cpus.push_back(cpu);
  return cpus;
}

CpuSet all_of(const std::vector<CpuSet>& sets) {
  CpuSet all;
  for (const auto& set : sets) all.insert(all.end(), set.begin(), set.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

// The parts of `sets` that lie within `pool`, empty ones left out.
std::vector<CpuSet> within(const std::vector<CpuSet>& sets, const CpuSet& pool) {
  std::vector<CpuSet> parts;
  for (const auto& set : sets)
    if (auto part = common_cpus(set, pool); !part.empty()) parts.push_back(std::move(part));
  return parts;
}

// NUMA nodes for the `index`-th of `count` ranks: those whose middle lies in the rank's share of all CPUs, so that
// nodes are neither split nor left idle; with more ranks than nodes the one in which the middle of its share lies.
CpuSet share_of_nodes(const std::vector<CpuSet>& nodes, size_t index, size_t count) {
  size_t total = 0, before = 0;
  for (const auto& node : nodes) total += node.size();
  std::vector<CpuSet> chosen;
  CpuSet home;
  for (const auto& node : nodes) {  // in units of 1 / (2 * count) of a CPU, to stay exact
    const size_t middle = (2 * before + node.size()) * count;
    if (middle >= 2 * index * total && middle < 2 * (index + 1) * total) chosen.push_back(node);
    const size_t own_middle = (2 * index + 1) * total;
    if (own_middle >= 2 * before * count && own_middle < 2 * (before + node.size()) * count) home = node;
    before += node.size();
  }
  return chosen.empty() ? home : all_of(chosen);
}

// Equal shares of the pool, of whole physical cores if every rank gets one; none when there are fewer hardware threads
// than ranks.
std::vector<CpuSet> shares_of_cores(const MachineTopology& machine, const CpuSet& pool, size_t count) {
  std::vector<CpuSet> units;  // node by node, so that a share lies on as few nodes as possible
  for (const auto& node : within(machine.numa_nodes, pool))
    for (const auto& core : within(machine.cores, node)) units.push_back(core);
  if (units.size() < count) {
    std::vector<CpuSet> threads;
    for (const auto& core : units)
      for (const int cpu : core) threads.push_back({cpu});
    units = threads;
  }
  if (units.size() < count) return {};
  std::vector<CpuSet> shares;
  for (size_t index = 0; index < count; ++index)
    shares.push_back(all_of({units.begin() + static_cast<int64_t>(index * units.size() / count),
                             units.begin() + static_cast<int64_t>((index + 1) * units.size() / count)}));
  return shares;
}

class Host {
 public:
  Host(const std::vector<CoreView>& views, const std::vector<size_t>& ranks, std::vector<Affinity>& chosen)
      : views_(views), ranks_(ranks), chosen_(chosen) {}

  void choose(BindPolicy policy) {
    for (size_t index = 0; index < ranks_.size(); ++index)
      chosen_[ranks_[index]] = {views_[ranks_[index]].allowed, static_cast<int>(index), static_cast<int>(ranks_.size()),
                                ""};
    if (policy == BindPolicy::kNone) return explain(fmt::format("not bound: {} is none", kBindVariable));
    for (const size_t rank : ranks_)
      if (views_[rank].allowed != pool()) return explain("already bound by whoever started it");
    if (policy == BindPolicy::kNuma)
      by_nodes();
    else
      by_cores();
  }

 private:
  const CpuSet& pool() const { return views_[ranks_[0]].allowed; }
  const MachineTopology& machine() const { return views_[ranks_[0]].machine; }
  CpuSet near_gpu(size_t rank) const { return common_cpus(views_[rank].near_gpu, pool()); }

  void explain(const std::string& why) {
    for (const size_t rank : ranks_) chosen_[rank].why = why;
  }

  void by_nodes() {
    const auto nodes = within(machine().numa_nodes, pool());
    for (size_t index = 0; index < ranks_.size(); ++index) {
      const size_t rank = ranks_[index];
      auto& affinity = chosen_[rank];
      if (nodes.size() < 2) {
        affinity.why = "all in one NUMA node";
      } else if (auto near = near_gpu(rank); !near.empty()) {
        affinity.cpus = std::move(near);
        affinity.why = "NUMA node of its GPU";
      } else if (!views_[rank].near_gpu.empty()) {
        affinity.why = "the NUMA node of its GPU is out of reach";
      } else {
        affinity.cpus = share_of_nodes(nodes, index, ranks_.size());
        affinity.why = "NUMA nodes shared out";
      }
    }
  }

  void by_cores() {
    std::map<CpuSet, std::vector<size_t>> groups;  // ranks by where their cores should lie
    size_t cpus = 0;
    for (const size_t rank : ranks_) groups[near_gpu(rank)].push_back(rank);
    std::vector<CpuSet> places;
    for (const auto& group : groups) places.push_back(group.first), cpus += group.first.size();
    // GPUs whose nearby CPUs are unknown, overlap, or are too few are ignored.
    const auto too_few = [&](const auto& group) {
      return shares_of_cores(machine(), group.first, group.second.size()).empty();
    };
    if (groups.count({}) || all_of(places).size() != cpus || std::any_of(groups.begin(), groups.end(), too_few))
      groups = {{pool(), ranks_}};
    for (const auto& [place, ranks] : groups) {
      const auto shares = shares_of_cores(machine(), place, ranks.size());
      if (shares.empty()) return explain("not bound: more ranks than cores");
      for (size_t index = 0; index < ranks.size(); ++index) {
        chosen_[ranks[index]].cpus = shares[index];
        chosen_[ranks[index]].why = "cores of its own";
      }
    }
  }

  const std::vector<CoreView>& views_;
  const std::vector<size_t>& ranks_;
  std::vector<Affinity>& chosen_;
};

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
    text += fmt::format("{}{}", text.empty() ? "" : ",", cpus[first]);
    if (last > first) text += fmt::format("-{}", cpus[last]);
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
                "wrong (check with lstopo)");
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

BindPolicy bind_policy(const std::string& word) {
  if (word == "numa") return BindPolicy::kNuma;
  if (word == "core") return BindPolicy::kCore;
  if (word == "none") return BindPolicy::kNone;
  throw Error(
      ExitCode::kUsage,
      fmt::format("\"{}\" is not a way to bind ranks: write numa (each to NUMA nodes, the default), core (each to "
                  "cores of its own) or none",
                  word));
}

std::vector<Affinity> choose_affinity(const std::vector<CoreView>& views, BindPolicy policy) {
  std::map<std::string, std::vector<size_t>> ranks_by_host;
  for (size_t rank = 0; rank < views.size(); ++rank) ranks_by_host[views[rank].host].push_back(rank);
  std::vector<Affinity> chosen(views.size());
  for (const auto& [host, ranks] : ranks_by_host) Host(views, ranks, chosen).choose(policy);
  return chosen;
}

Affinity bind_cores(Communicator& communicator, const DeviceBinding& device) {
  const char* word = std::getenv(kBindVariable);
  const std::string wanted = word ? word : "numa";
  require_same(communicator, kBindVariable, wanted, "Set it alike on all hosts");
  BindPolicy policy = BindPolicy::kNuma;
  run_on_all_ranks(communicator, [&] { policy = bind_policy(wanted); });
  std::unique_ptr<Machine> machine;
  run_on_all_ranks(communicator, [&] { machine = std::make_unique<Machine>(!device.gpu.pci.empty()); });
  const CpuSet allowed = machine->allowed();
  const auto& topology = machine->topology();
  const nlohmann::json own = {device.host,    topology.packages, topology.numa_nodes,
                              topology.cores, allowed,           machine->cpus_near(device.gpu.pci)};
  std::vector<CoreView> views;
  for (const auto& text : communicator.all_gather_bytes(own.dump())) {
    const auto json = nlohmann::json::parse(text);
    views.push_back({json[0], {json[1], json[2], json[3]}, json[4], json[5]});
  }
  Affinity affinity = choose_affinity(views, policy)[communicator.rank()];
  if (affinity.cpus != allowed && !machine->bind(affinity.cpus)) {
    affinity.cpus = allowed;
    affinity.why = "the system refused to bind it";
  }
  return affinity;
}

}  // namespace muster::distributed
