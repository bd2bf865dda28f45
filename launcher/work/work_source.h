#pragma once

#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>

#include "base/error.h"
#include "distributed/control_channel.h"

namespace muster::launcher {

// A request or answer as it is sent. Bytes that are not UTF-8, as in a file's name, are replaced.
std::string message_text(const nlohmann::json& message);

// Where a group's first rank gets its work from and reports how it went. Every source answers:
//   {"op": "next"}      -> {"do": "train", and what}, {"do": "wait"} (ask again), {"do": "end"}
//   {"op": "stopping"}  -> {}    the job was asked to stop: no group begins anything more
class WorkSource {
 public:
  virtual ~WorkSource() = default;
  // Throws an Error that ends the job.
  virtual nlohmann::json ask(const nlohmann::json& request) = 0;
};

// Rank 0's: answers its own group directly and the first ranks of other groups from a thread, one request at a time, so
// that nobody waits for another group's training. The first rank whose request fails is told why, reports it and ends
// the job: later requests get no answer, so that there is one message.
class WorkServer final : public WorkSource {
 public:
  // Answers with what `source` says, which must outlive it and is called with one request at a time. ranks: of the job.
  // addresses: as ControlChannel::listen. Throws Error(kPeerFailed) when it cannot listen.
  WorkServer(WorkSource& source, int ranks, const std::vector<uint32_t>& addresses);
  ~WorkServer() override;

  // Where RemoteWorkSource finds it.
  const std::string& address() const { return address_; }
  nlohmann::json ask(const nlohmann::json& request) override;

 private:
  void serve();
  // Keeps what the source throws. With mutex_ held.
  nlohmann::json ask_source(const nlohmann::json& request);

  WorkSource& source_;
  std::mutex mutex_;            // guards the source and the error
  std::optional<Error> error_;  // that some rank has been told
  distributed::ControlChannel channel_;
  std::string address_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

// Another group's first rank: asks rank 0.
class RemoteWorkSource final : public WorkSource {
 public:
  // address: the server's. Throws Error(kPeerFailed) when rank 0 cannot be reached.
  RemoteWorkSource(int rank, int ranks, const std::string& address);
  nlohmann::json ask(const nlohmann::json& request) override;

 private:
  distributed::ControlChannel channel_;
};

// A source calls this when something it handed out has failed. Throws Error(kBadConfig) when ten of this job have ended
// and none, of any job, has ever succeeded: then the whole is wrong, not some of its parts. whole, parts: "search",
// "trials". ended: of this job; succeeded: of all jobs; name, reason: of the one that has failed.
void stop_when_all_fail(const std::string& whole, const std::string& parts, int64_t ended, int64_t succeeded,
                        const std::string& name, const std::string& reason);

}  // namespace muster::launcher
