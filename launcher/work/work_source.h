#pragma once

#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "base/error.h"
#include "distributed/control_channel.h"

namespace muster::launcher {

// A request or answer as it is sent. Bytes that are no UTF-8, as in a file's name, are replaced.
std::string message_text(const nlohmann::json& message);

// Where a group's first rank gets its work from and tells how it went. Every source knows:
//   {"op": "next"}      -> {"do": "train", and what}, {"do": "wait"} (ask again), {"do": "end"}
//   {"op": "stopping"}  -> {}    the job was asked to stop: no group begins anything more
class WorkSource {
 public:
  virtual ~WorkSource() = default;
  // Throws an Error that ends the job.
  virtual nlohmann::json ask(const nlohmann::json& request) = 0;
};

// Rank 0's: answers its own group, and by a thread the first ranks of other groups, one request at a time, so that
// nobody waits for another's training.
class WorkServer final : public WorkSource {
 public:
  // Answers with what `source` says, which must outlive it and is only called with one request at a time. ranks: of the
  // job. Throws Error(kPeerFailed) when it cannot listen.
  WorkServer(WorkSource& source, int ranks, bool loopback);
  ~WorkServer() override;

  // Where RemoteWorkSource finds it.
  const std::string& address() const { return address_; }
  nlohmann::json ask(const nlohmann::json& request) override;

 private:
  void serve();

  WorkSource& source_;
  std::mutex mutex_;     // of the source and the trouble
  std::string trouble_;  // an error that the thread met: the next ask() of rank 0 throws it
  ExitCode trouble_code_ = ExitCode::kInternal;
  distributed::ControlChannel line_;
  std::string address_;
  std::atomic<bool> over_{false};
  std::thread thread_;
};

// Another group's first rank: asks rank 0.
class RemoteWorkSource final : public WorkSource {
 public:
  // address: the server's. Throws Error(kPeerFailed) when rank 0 cannot be reached.
  RemoteWorkSource(int rank, int ranks, const std::string& address);
  nlohmann::json ask(const nlohmann::json& request) override;

 private:
  distributed::ControlChannel line_;
};

}  // namespace muster::launcher
