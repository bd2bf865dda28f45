#pragma once

#include <poll.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace muster::distributed {

// Each watchdog talks to that of rank 0 over one TCP connection, independently of MPI; so do ranks that cannot meet in
// a collective (kMessage). Nothing here blocks except connect(). For use by one thread.
//
// Whoever connects must know a random token, which ranks exchange through MPI. The end of a connection is an event: if
// the rank has not sent kLeaving before, its process has died.
class ControlChannel {
 public:
  enum class Kind : uint32_t { kHello, kStatus, kLeaving, kReport, kVerdict, kEnd, kMessage };
  struct Event {
    Kind kind;
    int rank;  // that sent it
    std::string payload;
  };
  static constexpr size_t kAddressBytes = 128;
  static const uint32_t kLoopback;  // 127.0.0.1, in network byte order

  ControlChannel(int rank, int size);
  ~ControlChannel();
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;

  // Rank 0. Listens where the other ranks are, and nowhere else: addresses_facing(their own_addresses()), or
  // {kLoopback} where all ranks share this machine. Returns what connect() needs, kAddressBytes long; empty when it
  // cannot listen.
  std::string listen(const std::vector<uint32_t>& addresses);
  // Other ranks: tries rank 0's addresses in turn, at most 2 s each. False when none answers.
  bool connect(const std::string& address);

  bool reaches(int rank) const;
  void add_to(std::vector<pollfd>& waits) const;
  std::vector<Event> receive();
  // Does nothing when there is no connection to that rank. optional: dropped while older messages are still queued.
  void send(int rank, Kind kind, const std::string& payload, bool optional = false);
  void send_to_all(Kind kind, const std::string& payload, bool optional = false);

 private:
  struct Connection {
    int fd;
    int rank;  // -1: not known yet
    std::string in, out;
    std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
  };
  void accept_new(int listener);
  bool read_some(Connection& connection, std::vector<Event>& events);
  void write_some(Connection& connection);

  const int rank_, size_;
  std::vector<int> listeners_;
  std::string token_;
  std::vector<Connection> connections_;
};

}  // namespace muster::distributed
