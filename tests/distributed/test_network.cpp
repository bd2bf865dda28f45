// Which interfaces the other ranks are on: nobody listens on the others.
#include "distributed/network.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <string>

namespace muster::distributed {
namespace {

using Addresses = std::vector<uint32_t>;

uint32_t ip(const std::string& text) { return ::inet_addr(text.c_str()); }

NetworkAddresses machine(const std::vector<std::pair<std::string, std::string>>& interfaces) {
  NetworkAddresses all;
  for (const auto& [host, mask] : interfaces) {
    all.hosts[all.count] = ip(host);
    all.masks[all.count++] = ip(mask);
  }
  return all;
}

const NetworkAddresses kOwn = machine({{"203.0.113.7", "255.255.255.0"},   // the world
                                       {"10.0.0.1", "255.255.0.0"},        // the cluster's Ethernet
                                       {"192.168.50.1", "255.255.255.0"},  // its InfiniBand
                                       {"172.17.0.1", "255.255.0.0"}});    // a container bridge
uint32_t by_default_route(uint32_t) { return ip("203.0.113.7"); }

TEST(Network, OnlyInterfacesOfSharedNetworksAreUsed) {
  const auto peer =
      machine({{"203.0.114.8", "255.255.255.0"}, {"10.0.3.9", "255.255.0.0"}, {"172.17.0.1", "255.255.0.0"}});
  EXPECT_EQ(addresses_facing({kOwn, peer}, kOwn, by_default_route), Addresses{ip("10.0.0.1")});
  const auto with_infiniband = machine({{"10.0.3.9", "255.255.0.0"}, {"192.168.50.9", "255.255.255.0"}});
  EXPECT_EQ(addresses_facing({with_infiniband, peer}, kOwn, by_default_route),
            (Addresses{ip("10.0.0.1"), ip("192.168.50.1")}));
}

TEST(Network, WhereNoNetworkIsSharedTheRouteDecides) {
  const auto far = machine({{"198.51.100.4", "255.255.255.0"}});
  EXPECT_EQ(addresses_facing({far}, kOwn, by_default_route), Addresses{ip("203.0.113.7")});
  EXPECT_EQ(addresses_facing({far}, kOwn, [](uint32_t) { return 0u; }), Addresses{});
}

TEST(Network, ProcessesOfOneMachineNeedLoopbackOnly) {
  EXPECT_EQ(addresses_facing({kOwn, kOwn}, kOwn, by_default_route), Addresses{ip("127.0.0.1")});
  EXPECT_EQ(addresses_facing({own_addresses()}), Addresses{ip("127.0.0.1")});
  EXPECT_EQ(addresses_facing({NetworkAddresses()}), Addresses{ip("127.0.0.1")});
}

}  // namespace
}  // namespace muster::distributed
