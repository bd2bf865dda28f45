#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace muster::distributed {

// The IPv4 addresses of a machine's network interfaces, in network byte order, as ranks exchange them.
struct NetworkAddresses {
  static constexpr uint32_t kMost = 16;
  uint32_t count = 0;
  uint32_t hosts[kMost] = {}, masks[kMost] = {};
};

// Those of this machine that are up, without loopback.
NetworkAddresses own_addresses();

// Our own addresses by which `others` can reach us: for each of them that of a network which it shares with us,
// otherwise that of our interface which `route` chooses for it; loopback where none has an address that is not ours
// too. So nobody listens on an interface that leads elsewhere. route: our address on the way to another, 0: none.
std::vector<uint32_t> addresses_facing(const std::vector<NetworkAddresses>& others, const NetworkAddresses& own,
                                       const std::function<uint32_t(uint32_t to)>& route);
std::vector<uint32_t> addresses_facing(const std::vector<NetworkAddresses>& others);

}  // namespace muster::distributed
