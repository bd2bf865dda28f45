#include "distributed/control_channel.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "distributed/packing.h"

namespace muster::distributed {
namespace {

constexpr size_t kTokenBytes = 16;
constexpr uint32_t kMostAddresses = 16;
constexpr uint32_t kLongest = 1 << 20;            // of a message
constexpr std::chrono::seconds kToNameItself{5};  // for a connection to say which rank it is
constexpr size_t kLongestUnknown = 4096;          // bytes read from a connection that has not named its rank

struct Address {
  char token[kTokenBytes];
  uint32_t count;
  uint32_t hosts[kMostAddresses];  // in network order, like the ports
  uint16_t ports[kMostAddresses];
};
static_assert(sizeof(Address) <= ControlChannel::kAddressBytes);

struct Head {
  ControlChannel::Kind kind;
  uint32_t length;
};

sockaddr_in socket_address(uint32_t host, uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = host;
  address.sin_port = port;
  return address;
}

void send_without_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

}  // namespace

ControlChannel::ControlChannel(int rank, int size) : rank_(rank), size_(size) {}

ControlChannel::~ControlChannel() {
  for (auto& connection : connections_) ::close(connection.fd);
  for (const int listener : listeners_) ::close(listener);
}

const uint32_t ControlChannel::kLoopback = htonl(INADDR_LOOPBACK);

std::string ControlChannel::listen(const std::vector<uint32_t>& addresses) {
  Address own{};
  if (::getrandom(own.token, kTokenBytes, 0) != static_cast<ssize_t>(kTokenBytes)) return "";
  for (const uint32_t host : addresses) {
    if (own.count == kMostAddresses) break;
    const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0) return "";
    listeners_.push_back(listener);
    sockaddr_in address = socket_address(host, 0);
    socklen_t length = sizeof address;
    if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(listener, SOMAXCONN) != 0 ||
        ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0)
      return "";
    own.hosts[own.count] = host;
    own.ports[own.count++] = address.sin_port;
  }
  if (own.count == 0) return "";
  token_.assign(own.token, kTokenBytes);
  std::string bytes = bytes_of(own);
  bytes.resize(kAddressBytes, '\0');
  return bytes;
}

bool ControlChannel::connect(const std::string& address) {
  Address theirs{};
  if (address.size() < sizeof theirs) return false;
  std::memcpy(&theirs, address.data(), sizeof theirs);
  for (uint32_t i = 0; i < std::min(theirs.count, kMostAddresses); ++i) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return false;
    const sockaddr_in target = socket_address(theirs.hosts[i], theirs.ports[i]);
    int error = ::connect(fd, reinterpret_cast<const sockaddr*>(&target), sizeof target) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      pollfd wait{fd, POLLOUT, 0};
      socklen_t length = sizeof error;
      if (::poll(&wait, 1, 2000) != 1 || ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0)
        error = ETIMEDOUT;
    }
    if (error != 0) {
      ::close(fd);
      continue;
    }
    send_without_delay(fd);
    connections_.push_back({fd, 0, "", "", {}});
    send(0, Kind::kHello, std::string(theirs.token, kTokenBytes) + bytes_of(int32_t{rank_}));
    return true;
  }
  return false;
}

bool ControlChannel::reaches(int rank) const {
  return std::any_of(connections_.begin(), connections_.end(),
                     [&](const Connection& each) { return each.rank == rank; });
}

void ControlChannel::add_to(std::vector<pollfd>& waits) const {
  for (const int listener : listeners_) waits.push_back({listener, POLLIN, 0});
  for (const auto& each : connections_)
    waits.push_back({each.fd, static_cast<short>(POLLIN | (each.out.empty() ? 0 : POLLOUT)), 0});
}

void ControlChannel::accept_new(int listener) {
  // At most so many at a time: those that are there have been read before one of them must give way.
  for (int taken = 0; taken <= size_ + 16; ++taken) {
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    // Strangers that never name a rank must use up neither this process's descriptors nor the places of ranks: the
    // oldest of them gives way.
    const auto is_unknown = [](const Connection& each) { return each.rank < 0; };
    if (std::count_if(connections_.begin(), connections_.end(), is_unknown) > size_ + 16) {
      const auto oldest = std::find_if(connections_.begin(), connections_.end(), is_unknown);
      ::close(oldest->fd);
      connections_.erase(oldest);
    }
    send_without_delay(fd);
    connections_.push_back({fd, -1, "", "", std::chrono::steady_clock::now()});
  }
}

std::vector<ControlChannel::Event> ControlChannel::receive() {
  for (const int listener : listeners_) accept_new(listener);
  std::vector<Event> events;
  for (size_t i = 0; i < connections_.size();) {
    write_some(connections_[i]);
    const bool in_time =
        connections_[i].rank >= 0 || std::chrono::steady_clock::now() - connections_[i].since < kToNameItself;
    if (read_some(connections_[i], events) && (in_time || connections_[i].rank >= 0)) {
      ++i;
      continue;
    }
    if (connections_[i].rank >= 0) events.push_back({Kind::kEnd, connections_[i].rank, ""});
    ::close(connections_[i].fd);
    connections_.erase(connections_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return events;
}

// False when the connection has ended, or what it sends is not the protocol.
bool ControlChannel::read_some(Connection& connection, std::vector<Event>& events) {
  char buffer[16384];
  bool open = true;
  while (true) {
    const ssize_t got = ::recv(connection.fd, buffer, sizeof buffer, 0);
    if (got > 0) {
      connection.in.append(buffer, static_cast<size_t>(got));
      if (connection.rank < 0 && connection.in.size() > kLongestUnknown) return false;
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    open = got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    break;
  }
  size_t start = 0;
  Head head;
  while (connection.in.size() - start >= sizeof head) {
    std::memcpy(&head, connection.in.data() + start, sizeof head);
    if (head.length > kLongest) return false;
    if (connection.in.size() - start - sizeof head < head.length) break;
    Event event{head.kind, connection.rank, connection.in.substr(start + sizeof head, head.length)};
    start += sizeof head + head.length;
    if (connection.rank >= 0) {
      events.push_back(std::move(event));
      continue;
    }
    int32_t claimed = -1;
    if (head.kind != Kind::kHello || head.length != kTokenBytes + sizeof claimed ||
        event.payload.compare(0, kTokenBytes, token_) != 0)
      return false;
    std::memcpy(&claimed, event.payload.data() + kTokenBytes, sizeof claimed);
    if (claimed < 1 || claimed >= size_ || reaches(claimed)) return false;
    connection.rank = claimed;
  }
  connection.in.erase(0, start);
  return open;
}

void ControlChannel::write_some(Connection& connection) {
  while (!connection.out.empty()) {
    const ssize_t sent = ::send(connection.fd, connection.out.data(), connection.out.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      connection.out.erase(0, static_cast<size_t>(sent));
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) connection.out.clear();  // receive() finds its end
    return;
  }
}

void ControlChannel::send(int rank, Kind kind, const std::string& payload, bool optional) {
  for (auto& each : connections_) {
    if (each.rank != rank || (optional && !each.out.empty())) continue;
    each.out += bytes_of(Head{kind, static_cast<uint32_t>(payload.size())}) + payload;
    write_some(each);
  }
}

void ControlChannel::send_to_all(Kind kind, const std::string& payload, bool optional) {
  for (size_t i = 0; i < connections_.size(); ++i)
    if (connections_[i].rank >= 0) send(connections_[i].rank, kind, payload, optional);
}

}  // namespace muster::distributed
