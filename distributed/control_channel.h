#pragma once

#include <poll.h>

#include <cstdint>
#include <string>
#include <vector>

namespace muster::distributed {

// Watchdogs talk to that of rank 0 over one TCP connection each, apart from MPI; so do others who cannot meet in a
// collective (kMessage). Nothing here waits, but for connect(). For use by one thread.
//
// Whoever connects must know a random token, which ranks get through MPI. A connection that ends is an event: of a rank
// that has not said kLeaving before, the process has died.
class ControlChannel {
 public:
  enum class Kind : uint32_t { kHello, kStatus, kLeaving, kReport, kVerdict, kEnd, kMessage };
  struct Event {
    Kind kind;
    int rank;  // it came from
    std::string payload;
  };
  static constexpr size_t kAddressBytes = 128;

  ControlChannel(int rank, int size);
  ~ControlChannel();
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;

  // Rank 0. loopback: all ranks share this machine, no other can connect. Returns what connect() needs, kAddressBytes
  // long; empty when there is no way to listen.
  std::string listen(bool loopback);
  // Other ranks: tries rank 0's addresses in turn, at most 2 s each. False when none answers.
  bool connect(const std::string& address);

  bool reaches(int rank) const;
  void add_to(std::vector<pollfd>& waits) const;
  std::vector<Event> receive();
  // To a rank that is not reached: nothing. optional: left out while older messages have not gone yet.
  void send(int rank, Kind kind, const std::string& payload, bool optional = false);
  void send_to_all(Kind kind, const std::string& payload, bool optional = false);

 private:
  struct Connection {
    int fd;
    int rank;  // -1: has not said yet
    std::string in, out;
  };
  void accept_new();
  bool read_some(Connection& connection, std::vector<Event>& events);
  void write_some(Connection& connection);

  const int rank_, size_;
  int listener_ = -1;
  std::string token_;
  std::vector<Connection> connections_;
};

}  // namespace muster::distributed
