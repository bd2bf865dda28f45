#pragma once

#include <functional>
#include <string>
#include <vector>

#include "distributed/communicator.h"

// The contract of Communicator as checks that every backend must pass: each runs on all ranks at once, and compares
// with a Peer, which does the same by other means.
namespace muster::distributed::contract {

using OfRank = std::function<at::Tensor(int rank)>;  // what a rank puts in
using Counts = std::vector<std::vector<int64_t>>;    // [from][to]

class Peer {
 public:
  virtual ~Peer() = default;
  // Bytes of the largest tensors to try.
  virtual int64_t large() const = 0;
  virtual at::Tensor sum(const OfRank& put_in) = 0;
  virtual at::Tensor gather(const OfRank& rows) = 0;
  virtual at::Tensor exchange(const OfRank& rows, const Counts& counts) = 0;
  virtual at::Tensor broadcast(const OfRank& put_in, int root) = 0;
};

// Computes what all ranks put in, here, with LibTorch.
class PlainPeer final : public Peer {
 public:
  PlainPeer(int rank, int size, int64_t large = int64_t{1} << 20) : rank_(rank), size_(size), large_(large) {}
  int64_t large() const override { return large_; }
  at::Tensor sum(const OfRank& put_in) override;
  at::Tensor gather(const OfRank& rows) override;
  at::Tensor exchange(const OfRank& rows, const Counts& counts) override;
  at::Tensor broadcast(const OfRank& put_in, int root) override;

 private:
  int rank_, size_;
  int64_t large_;
};

struct Check {
  std::string name;
  void (*run)(Communicator&, Peer&);
};
// Those of contract_collectives.cpp, contract_order.cpp and contract_agreements.cpp.
std::vector<Check> all_checks();
std::vector<Check> collective_checks();
std::vector<Check> order_checks();
std::vector<Check> agreement_checks();

// Numbers for rank `rank`, whose sums over ranks are exact in every dtype.
at::Tensor part(int64_t numel, at::ScalarType dtype, int rank);

// Leaves whose sum depends on the order of additions; those with a bit in `absent` are undefined tensors.
std::vector<at::Tensor> leaves_for_sums(int64_t leaves, int64_t length, at::ScalarType dtype, uint32_t absent);
// TreeSum's tree, written down again: out of place, all leaves at hand. And the plain sum from left to right.
at::Tensor direct_tree(const std::vector<at::Tensor>& leaves, int64_t length, at::ScalarType dtype);
at::Tensor sum_in_order(const std::vector<at::Tensor>& leaves, int64_t length, at::ScalarType dtype);
bool same_bits(const at::Tensor& a, const at::Tensor& b);

// What `work` does: "no error", or "<exit code>: <message>" of a SharedError; checked to be the same on all ranks.
std::string outcome(Communicator& communicator, const std::function<void()>& work);

}  // namespace muster::distributed::contract
