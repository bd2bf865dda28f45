#include "distributed/network.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace muster::distributed {
namespace {

// What the kernel would send from; nothing is sent.
uint32_t source_of_route(uint32_t to) {
  const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return 0;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = to;
  address.sin_port = htons(9);  // any
  socklen_t length = sizeof address;
  const bool found = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
                     ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  ::close(fd);
  return found ? address.sin_addr.s_addr : 0;
}

}  // namespace

NetworkAddresses own_addresses() {
  NetworkAddresses own;
  ifaddrs* interfaces = nullptr;
  if (::getifaddrs(&interfaces) != 0) return own;
  for (const ifaddrs* each = interfaces; each && own.count < NetworkAddresses::kMost; each = each->ifa_next) {
    if (!each->ifa_addr || each->ifa_addr->sa_family != AF_INET || !each->ifa_netmask || !(each->ifa_flags & IFF_UP) ||
        (each->ifa_flags & IFF_LOOPBACK))
      continue;
    own.hosts[own.count] = reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr.s_addr;
    own.masks[own.count++] = reinterpret_cast<const sockaddr_in*>(each->ifa_netmask)->sin_addr.s_addr;
  }
  ::freeifaddrs(interfaces);
  return own;
}

std::vector<uint32_t> addresses_facing(const std::vector<NetworkAddresses>& others, const NetworkAddresses& own,
                                       const std::function<uint32_t(uint32_t)>& route) {
  std::vector<uint32_t> facing;
  const auto add = [&](uint32_t address) {
    if (address != 0 && std::find(facing.begin(), facing.end(), address) == facing.end()) facing.push_back(address);
  };
  bool any_elsewhere = false;
  const uint32_t* const own_end = own.hosts + own.count;
  for (const NetworkAddresses& other : others) {
    // An address that we have too, such as a container bridge's, says nothing about the way to another machine.
    std::vector<uint32_t> theirs;
    for (uint32_t i = 0; i < std::min(other.count, NetworkAddresses::kMost); ++i)
      if (std::find(own.hosts, own_end, other.hosts[i]) == own_end) theirs.push_back(other.hosts[i]);
    any_elsewhere = any_elsewhere || !theirs.empty();
    bool shares_a_network = false;
    for (uint32_t i = 0; i < own.count; ++i)
      for (const uint32_t address : theirs)
        if (((own.hosts[i] ^ address) & own.masks[i]) == 0) add(own.hosts[i]), shares_a_network = true;
    if (!shares_a_network)
      for (const uint32_t address : theirs) add(route(address));
  }
  // Never beside others: another machine would take it for its own.
  if (!any_elsewhere) add(htonl(INADDR_LOOPBACK));
  return facing;
}

std::vector<uint32_t> addresses_facing(const std::vector<NetworkAddresses>& others) {
  return addresses_facing(others, own_addresses(), source_of_route);
}

}  // namespace muster::distributed
