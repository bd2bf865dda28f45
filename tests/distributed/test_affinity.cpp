// Which cores ranks get on made-up machines: sockets, hardware threads, GPUs, and what starters have done before.
#include "distributed/affinity.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace muster::distributed {
namespace {

CpuSet range(int first, int last) {
  CpuSet cpus;
  for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  return cpus;
}

// hwloc's own made-up machines.
class Synthetic {
 public:
  explicit Synthetic(const std::string& description) {
    setenv("HWLOC_SYNTHETIC", description.c_str(), 1);
    machine_ = std::make_unique<Machine>();
    unsetenv("HWLOC_SYNTHETIC");
  }
  CoreView view(const std::string& host = "a", const CpuSet& near_gpu = {}) const {
    return {host, machine_->topology(), machine_->allowed(), near_gpu};
  }
  const Machine& machine() const { return *machine_; }

 private:
  std::unique_ptr<Machine> machine_;
};

const std::string kTwoSockets = "package:2 numa:1 core:4 pu:1";  // 0-3, 4-7
const std::string kHyperThreads = "package:2 numa:1 core:4 pu:2(indexes=core:package)";

std::vector<std::string> cpus(const std::vector<Affinity>& chosen) {
  std::vector<std::string> texts;
  for (const auto& each : chosen) texts.push_back(cpu_text(each.cpus));
  return texts;
}

std::vector<std::string> cpus(const std::vector<CoreView>& views, BindPolicy policy) {
  return cpus(choose_affinity(views, policy));
}

using Texts = std::vector<std::string>;

TEST(Topology, IsWhatHwlocDescribes) {
  const Synthetic two(kTwoSockets);
  EXPECT_EQ(two.machine().topology().packages, (std::vector<CpuSet>{range(0, 3), range(4, 7)}));
  EXPECT_EQ(two.machine().topology().numa_nodes.size(), 2u);
  EXPECT_EQ(two.machine().topology().cores.size(), 8u);
  EXPECT_EQ(two.machine().allowed(), range(0, 7));
  EXPECT_TRUE(two.machine().bind({3})) << "binding to a machine that is not this one does nothing";
  const Machine own;
  EXPECT_EQ(common_cpus(own.allowed(), own.allowed()), own.allowed());
  EXPECT_FALSE(own.allowed().empty());
  EXPECT_TRUE(own.cpus_near("").empty());
}

TEST(Topology, TwoKindsOfMemoryOnOneSocketAreOnePlace) {
  const Synthetic machine("package:2 [numa] [numa] core:2 pu:1");
  EXPECT_EQ(machine.machine().topology().numa_nodes, (std::vector<CpuSet>{range(0, 1), range(2, 3)}));
  EXPECT_EQ(cpus(std::vector<CoreView>(4, machine.view()), BindPolicy::kCore), (Texts{"0", "1", "2", "3"}));
}

TEST(Topology, CpusAsText) {
  EXPECT_EQ(cpu_text({}), "none");
  EXPECT_EQ(cpu_text({3}), "3");
  EXPECT_EQ(cpu_text({0, 1, 2, 3, 8, 10, 11}), "0-3,8,10-11");
}

TEST(Affinity, PlacesAreCountedPerHost) {
  const Synthetic machine(kTwoSockets);
  const auto chosen =
      choose_affinity({machine.view("a"), machine.view("b"), machine.view("a"), machine.view("b"), machine.view("b")},
                      BindPolicy::kNone);
  std::vector<int> places, sizes;
  for (const auto& each : chosen) places.push_back(each.local_rank), sizes.push_back(each.local_size);
  EXPECT_EQ(places, (std::vector<int>{0, 0, 1, 1, 2}));
  EXPECT_EQ(sizes, (std::vector<int>{2, 3, 2, 3, 3}));
  EXPECT_EQ(cpus(chosen), Texts(5, "0-7"));
}

TEST(Affinity, NodesAreSharedOutEvenlyAndWhole) {
  const Synthetic machine(kTwoSockets);
  EXPECT_EQ(cpus({machine.view()}, BindPolicy::kNuma), Texts{"0-7"});
  EXPECT_EQ(cpus(std::vector<CoreView>(2, machine.view()), BindPolicy::kNuma), (Texts{"0-3", "4-7"}));
  EXPECT_EQ(cpus(std::vector<CoreView>(4, machine.view()), BindPolicy::kNuma), (Texts{"0-3", "0-3", "4-7", "4-7"}));
  EXPECT_EQ(cpus(std::vector<CoreView>(3, machine.view()), BindPolicy::kNuma), (Texts{"0-3", "4-7", "4-7"}));
  const Synthetic four("package:4 numa:1 core:2 pu:1");
  EXPECT_EQ(cpus(std::vector<CoreView>(2, four.view()), BindPolicy::kNuma), (Texts{"0-3", "4-7"}));
  EXPECT_EQ(cpus(std::vector<CoreView>(3, four.view()), BindPolicy::kNuma), (Texts{"0-1", "2-5", "6-7"}));
}

TEST(Affinity, UnevenNodesGetRanksInProportion) {
  const Synthetic machine(kTwoSockets);
  auto view = machine.view();
  view.allowed = {0, 1, 2, 3, 4};  // an allocation
  EXPECT_EQ(cpus(std::vector<CoreView>(5, view), BindPolicy::kNuma), (Texts{"0-3", "0-3", "0-3", "0-3", "4"}));
}

TEST(Affinity, OneNodeIsLeftAsItIs) {
  const Synthetic laptop("package:1 numa:1 core:8 pu:2");
  for (const int ranks : {1, 2, 16})
    for (const auto& each : choose_affinity(std::vector<CoreView>(ranks, laptop.view()), BindPolicy::kNuma)) {
      EXPECT_EQ(each.cpus, range(0, 15));
      EXPECT_EQ(each.why, "all in one NUMA node");
    }
}

TEST(Affinity, RanksStayNearTheirGpus) {
  const Synthetic machine(kTwoSockets);
  std::vector<CoreView> eight;
  for (int gpu = 0; gpu < 8; ++gpu) eight.push_back(machine.view("a", gpu < 4 ? range(4, 7) : range(0, 3)));
  EXPECT_EQ(cpus(eight, BindPolicy::kNuma), (Texts{"4-7", "4-7", "4-7", "4-7", "0-3", "0-3", "0-3", "0-3"}));
  EXPECT_EQ(cpus(eight, BindPolicy::kCore), (Texts{"4", "5", "6", "7", "0", "1", "2", "3"}));
  const std::vector<CoreView> one{machine.view("a", range(4, 7))};
  EXPECT_EQ(cpus(one, BindPolicy::kNuma), Texts{"4-7"});
  EXPECT_EQ(choose_affinity(one, BindPolicy::kNuma)[0].why, "NUMA node of its GPU");
}

TEST(Affinity, CoresOnTheWrongSideAreKept) {
  const Synthetic machine(kTwoSockets);
  auto view = machine.view("a", range(4, 7));
  view.allowed = range(0, 1);
  // 0-1 lie in one node, so there is nothing to choose from.
  EXPECT_EQ(cpus({view}, BindPolicy::kNuma), Texts{"0-1"});
  const Synthetic four("package:4 numa:1 core:2 pu:1");
  auto far = four.view("a", range(6, 7));
  far.allowed = range(0, 3);
  EXPECT_EQ(choose_affinity({far}, BindPolicy::kNuma)[0].cpus, range(0, 3));
  EXPECT_EQ(choose_affinity({far}, BindPolicy::kNuma)[0].why, "the NUMA node of its GPU is out of reach");
}

TEST(Affinity, MoreRanksThanCoresNearAGpuTakeOthers) {
  const Synthetic machine("package:2 numa:1 core:2 pu:1");
  std::vector<CoreView> views;
  for (int rank = 0; rank < 4; ++rank) views.push_back(machine.view("a", rank < 3 ? range(0, 1) : range(2, 3)));
  EXPECT_EQ(cpus(views, BindPolicy::kCore), (Texts{"0", "1", "2", "3"}));
}

TEST(Affinity, CoresAreSharedOutWhole) {
  const Synthetic machine(kHyperThreads);
  const auto cores = machine.machine().topology().cores;
  ASSERT_EQ(cores.size(), 8u);
  ASSERT_EQ(cores[0].size(), 2u);
  const auto chosen = choose_affinity(std::vector<CoreView>(8, machine.view()), BindPolicy::kCore);
  for (size_t rank = 0; rank < 8; ++rank) EXPECT_EQ(chosen[rank].cpus, cores[rank]);
  CpuSet all;
  for (const auto& each : choose_affinity(std::vector<CoreView>(3, machine.view()), BindPolicy::kCore)) {
    EXPECT_TRUE(each.cpus.size() == 4 || each.cpus.size() == 6);
    EXPECT_TRUE(common_cpus(all, each.cpus).empty()) << "shares are exclusive";
    all.insert(all.end(), each.cpus.begin(), each.cpus.end());
    std::sort(all.begin(), all.end());
  }
  EXPECT_EQ(all, range(0, 15));
  for (const auto& each : choose_affinity(std::vector<CoreView>(16, machine.view()), BindPolicy::kCore))
    EXPECT_EQ(each.cpus.size(), 1u) << "hardware threads";
  for (const auto& each : choose_affinity(std::vector<CoreView>(17, machine.view()), BindPolicy::kCore)) {
    EXPECT_EQ(each.cpus, range(0, 15));
    EXPECT_EQ(each.why, "not bound: more ranks than cores");
  }
}

TEST(Affinity, WhatTheStarterHasBoundStays) {
  const Synthetic machine(kTwoSockets);
  std::vector<CoreView> views(3, machine.view());
  views[0].allowed = {0}, views[1].allowed = {4};
  views[2].host = "b";
  for (const auto policy : {BindPolicy::kNuma, BindPolicy::kCore}) {
    const auto chosen = choose_affinity(views, policy);
    EXPECT_EQ(cpus(chosen), (Texts{"0", "4", "0-7"}));
    EXPECT_EQ(chosen[0].why, "already bound by whoever started it");
    EXPECT_NE(chosen[2].why, chosen[0].why);
  }
}

TEST(Affinity, OnlyTheAllocationIsSharedOut) {
  const Synthetic machine(kTwoSockets);
  std::vector<CoreView> views(2, machine.view());
  for (auto& view : views) view.allowed = {2, 3, 4, 5};
  EXPECT_EQ(cpus(views, BindPolicy::kNuma), (Texts{"2-3", "4-5"}));
  EXPECT_EQ(cpus(views, BindPolicy::kCore), (Texts{"2-3", "4-5"}));
}

TEST(Affinity, WordsOfThePolicy) {
  EXPECT_EQ(bind_policy("numa"), BindPolicy::kNuma);
  EXPECT_EQ(bind_policy("core"), BindPolicy::kCore);
  EXPECT_EQ(bind_policy("none"), BindPolicy::kNone);
  EXPECT_THROW(bind_policy("socket"), Error);
}

TEST(Affinity, BindsThisProcess) {
  const auto communicator = make_single_process_communicator();
  const Machine machine;
  const CpuSet before = machine.allowed();
  setenv(kBindVariable, "core", 1);
  const auto affinity = bind_cores(*communicator, {});
  EXPECT_EQ(affinity.cpus, before) << "a rank alone gets all cores";
  ASSERT_TRUE(machine.bind({before[0]}));
  EXPECT_EQ(machine.allowed(), CpuSet{before[0]});
  EXPECT_EQ(bind_cores(*communicator, {}).cpus, CpuSet{before[0]});
  ASSERT_TRUE(machine.bind(before));
  setenv(kBindVariable, "all", 1);
  EXPECT_THROW(bind_cores(*communicator, {}), SharedError);
  unsetenv(kBindVariable);
}

}  // namespace
}  // namespace muster::distributed
