#pragma once

#include <string>
#include <vector>

#include "distributed/collective_call.h"
#include "distributed/communicator.h"

namespace muster::distributed {

// What every backend with several ranks shares: arguments checked, calls compared between ranks, bytes counted. A
// backend adds meet() and the bodies of the collectives. Every collective goes through one function, run(): there the
// flight record and the watchdog learn what this rank does.
//
// A call that does not match is an error on every rank of the communicator: SharedError when they are the whole job,
// otherwise Error; all ranks are then at the same point and may continue together. After a timeout the communicator
// cannot be used any more.
class CheckedCommunicator : public Communicator {
 public:
  int rank() const final { return rank_; }
  int size() const final { return static_cast<int>(names_.ranks.size()); }
  int64_t bytes_sent() const override { return bytes_sent_; }

  void all_reduce_sum(at::Tensor tensor) override;
  at::Tensor all_gather_rows(const at::Tensor& rows, const std::vector<int64_t>& row_counts) override;
  at::Tensor all_to_all_rows(const at::Tensor& rows, const std::vector<int64_t>& send_counts,
                             const std::vector<int64_t>& receive_counts) override;
  void broadcast(at::Tensor tensor, int root) override;
  std::vector<std::string> all_gather_bytes(const std::string& bytes) override;
  std::unique_ptr<Communicator> split(int group) final;

 protected:
  static int64_t bytes_per_row(const at::Tensor& rows);
  // recorded: its collectives go into the flight record of the process. Not for ranks that are threads: they would
  // share one.
  CheckedCommunicator(RankNames names, int rank, bool recorded = false);

  // The last collective: all ranks call it before they tear down what they share. Throws as any other does.
  void meet_for_the_last_time();

  // Sends `own` to all other ranks and returns all ranks' calls, by rank. On a timeout the watchdog, where there is
  // one, ends the process; without one this throws Error(kPeerFailed), with absence() as its message, after
  // collective_deadline().
  virtual const std::vector<CollectiveCall>& meet(const CollectiveCall& own) = 0;

  // The bodies. Arguments are checked and match those of all ranks. They are not called when no rank has anything to
  // move.
  virtual void sum_body(const at::Tensor& tensor) = 0;
  virtual void gather_body(const at::Tensor& rows, const std::vector<int64_t>& counts, const at::Tensor& gathered) = 0;
  virtual void exchange_body(const at::Tensor& rows, const std::vector<int64_t>& sends,
                             const std::vector<int64_t>& receives, const at::Tensor& received) = 0;
  virtual void broadcast_body(const at::Tensor& tensor, int root) = 0;
  // `sizes`: every rank's length.
  virtual std::vector<std::string> bytes_body(const std::string& bytes, const std::vector<int64_t>& sizes) = 0;
  // `members`: ranks of this communicator that gave `group`, ascending.
  virtual std::unique_ptr<Communicator> split_body(int group, const std::vector<int>& members, RankNames names) = 0;
  // Throws Error(kInternal) for a tensor on a device that this backend does not serve. Here: the CPU.
  virtual void require_device(const at::Tensor& tensor) const;

  const RankNames& names() const { return names_; }
  const CollectiveCall& last_completed() const { return last_completed_; }

 private:
  template <typename Body>
  void run(CollectiveCall call, const Body& body);
  CollectiveCall call_of(Collective kind, const at::Tensor& tensor, bool rows) const;
  void require_counts(const char* what, const std::vector<int64_t>& counts) const;
  [[noreturn]] void throw_mismatch(const std::string& message) const;

  RankNames names_;
  int rank_;
  bool recorded_;
  bool usable_ = true;
  int64_t sequence_ = 0;
  int64_t bytes_sent_ = 0;
  CollectiveCall last_completed_;
};

}  // namespace muster::distributed
