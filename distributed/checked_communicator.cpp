#include "distributed/checked_communicator.h"

#include <c10/util/accumulate.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "distributed/watchdog.h"
#include "distributed/watchdog_thread.h"

namespace muster::distributed {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(ExitCode::kInternal, message); }

at::Tensor empty_rows(const at::Tensor& like, const std::vector<int64_t>& counts) {
  auto shape = like.sizes().vec();
  shape[0] = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  return at::empty(shape, like.options().requires_grad(false));
}

// One collective in the flight record, from entry to end. Its completion counts as progress.
class Recorded {
 public:
  Recorded(bool recorded, const CollectiveCall& call, const std::string& communicator)
      : number_(recorded ? flight_recorder().enter(call, communicator, current_phase()) : 0) {}
  ~Recorded() {
    if (number_ > 0) flight_recorder().complete(number_, true);
  }
  Recorded(const Recorded&) = delete;
  Recorded& operator=(const Recorded&) = delete;
  void completed() {
    if (number_ == 0) return;
    flight_recorder().complete(number_);
    report_progress();
    number_ = 0;
  }

 private:
  int64_t number_;
};

}  // namespace

CheckedCommunicator::CheckedCommunicator(RankNames names, int rank, bool recorded)
    : names_(std::move(names)), rank_(rank), recorded_(recorded) {}

int64_t CheckedCommunicator::bytes_per_row(const at::Tensor& rows) {
  return c10::multiply_integers(rows.sizes().slice(1)) * static_cast<int64_t>(rows.element_size());
}

void CheckedCommunicator::require_device(const at::Tensor& tensor) const {
  if (!tensor.device().is_cpu())
    refuse(fmt::format("this communicator takes tensors on the CPU, not on {}", tensor.device().str()));
}

void CheckedCommunicator::require_counts(const char* what, const std::vector<int64_t>& counts) const {
  if (static_cast<int>(counts.size()) != size())
    refuse(fmt::format("{}: {} counts for {} ranks", what, counts.size(), size()));
  for (const int64_t count : counts)
    if (count < 0) refuse(fmt::format("{}: a count is {}", what, count));
}

CollectiveCall CheckedCommunicator::call_of(Collective kind, const at::Tensor& tensor, bool rows) const {
  if (!tensor.defined() || tensor.layout() != at::kStrided || !tensor.is_contiguous())
    refuse("collectives take contiguous tensors");
  require_device(tensor);
  if (rows && tensor.dim() == 0) refuse("a scalar has no rows");
  CollectiveCall call;
  call.kind = kind;
  call.dtype = static_cast<int32_t>(tensor.scalar_type());
  call.device = static_cast<int32_t>(tensor.device().type());
  const auto shape = tensor.sizes().slice(rows ? 1 : 0).vec();
  call.dims = static_cast<int32_t>(shape.size());
  std::copy_n(shape.begin(), std::min<size_t>(shape.size(), 4), call.shape);
  call.shape_hash = hash_of(shape);
  if (rows) call.own = tensor.size(0);
  return call;
}

void CheckedCommunicator::throw_mismatch(const std::string& message) const {
  // The ranks of a communicator that was split off are only some of the job's.
  if (names_.communicator == "world") throw SharedError(ExitCode::kInternal, message);
  throw Error(ExitCode::kInternal, message);
}

template <typename Body>
void CheckedCommunicator::run(CollectiveCall call, const Body& body) {
  if (!usable_)
    throw Error(ExitCode::kPeerFailed,
                fmt::format("A rank of {0} has failed: {0} has no collectives any more.", names_.communicator));
  // Once the watchdog ends this process, an aborted operation must not be followed by anything else.
  if (recorded_) yield_to_watchdog(ExitCode::kInternal);
  call.sequence = ++sequence_;
  std::strncpy(call.label, CollectiveLabel::current(), sizeof call.label - 1);
  Recorded record(recorded_, call, names_.communicator);
  usable_ = false;  // an exception of meet() leaves the ranks at different points
  const std::vector<CollectiveCall>& calls = meet(call);
  usable_ = true;
  const std::string message = disagreement(calls, names_);
  if (!message.empty()) throw_mismatch(message);
  body(calls);
  last_completed_ = call;
  record.completed();
}

void CheckedCommunicator::meet_for_the_last_time() {
  CollectiveCall call;
  call.kind = Collective::kEnd;
  run(call, [](const auto&) {});
}

void CheckedCommunicator::all_reduce_sum(at::Tensor tensor) {
  const CollectiveCall call = call_of(Collective::kAllReduceSum, tensor, false);
  const auto dtype = tensor.scalar_type();
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kLong)
    refuse(fmt::format("all_reduce_sum takes float32, float64 and int64 tensors, not {}",
                       c10::getDtypeNames(dtype).first));
  run(call, [&](const auto&) {
    if (tensor.numel() > 0) sum_body(tensor);
  });
  bytes_sent_ += 2 * static_cast<int64_t>(tensor.nbytes()) * (size() - 1) / size();
}

at::Tensor CheckedCommunicator::all_gather_rows(const at::Tensor& rows, const std::vector<int64_t>& row_counts) {
  CollectiveCall call = call_of(Collective::kAllGatherRows, rows, true);
  require_counts("all_gather_rows", row_counts);
  if (rows.size(0) != row_counts[rank_])
    refuse(fmt::format("all_gather_rows: {} rows, but the counts say {}", rows.size(0), row_counts[rank_]));
  call.counts_hash = hash_of(row_counts);
  at::Tensor gathered;
  run(call, [&](const auto&) {
    gathered = empty_rows(rows, row_counts);
    if (gathered.numel() > 0) gather_body(rows, row_counts, gathered);
  });
  bytes_sent_ += static_cast<int64_t>(rows.nbytes()) * (size() - 1);
  return gathered;
}

at::Tensor CheckedCommunicator::all_to_all_rows(const at::Tensor& rows, const std::vector<int64_t>& send_counts,
                                                const std::vector<int64_t>& receive_counts) {
  CollectiveCall call = call_of(Collective::kAllToAllRows, rows, true);
  require_counts("all_to_all_rows, sends", send_counts);
  require_counts("all_to_all_rows, receives", receive_counts);
  const int64_t given = std::accumulate(send_counts.begin(), send_counts.end(), int64_t{0});
  if (rows.size(0) != given)
    refuse(fmt::format("all_to_all_rows: {} rows, but the counts say {}", rows.size(0), given));
  for (int peer = 0; peer < size(); ++peer) {
    call.sends_hash += hash_of_transfer(rank_, peer, send_counts[peer]);
    call.receives_hash += hash_of_transfer(peer, rank_, receive_counts[peer]);
  }
  at::Tensor received;
  run(call, [&](const std::vector<CollectiveCall>& calls) {
    uint64_t sends = 0, receives = 0;
    for (const auto& each : calls) sends += each.sends_hash, receives += each.receives_hash;
    if (sends != receives) {
      std::vector<int64_t> both = send_counts;
      both.insert(both.end(), receive_counts.begin(), receive_counts.end());
      const size_t half = send_counts.size() * sizeof(int64_t);
      const auto all =
          bytes_body({reinterpret_cast<const char*>(both.data()), 2 * half}, std::vector<int64_t>(size(), 2 * half));
      std::vector<std::vector<int64_t>> all_sends(size(), send_counts), all_receives(size(), receive_counts);
      for (int peer = 0; peer < size(); ++peer) {
        std::memcpy(all_sends[peer].data(), all[peer].data(), half);
        std::memcpy(all_receives[peer].data(), all[peer].data() + half, half);
      }
      throw_mismatch(misfit(calls[rank_], all_sends, all_receives, names_));
    }
    received = empty_rows(rows, receive_counts);
    if (bytes_per_row(rows) > 0) exchange_body(rows, send_counts, receive_counts, received);
  });
  bytes_sent_ += (rows.size(0) - send_counts[rank_]) * bytes_per_row(rows);
  return received;
}

void CheckedCommunicator::broadcast(at::Tensor tensor, int root) {
  CollectiveCall call = call_of(Collective::kBroadcast, tensor, false);
  if (root < 0 || root >= size()) refuse(fmt::format("broadcast: there is no rank {} of {}", root, size()));
  call.root = root;
  run(call, [&](const auto&) {
    if (tensor.numel() > 0) broadcast_body(tensor, root);
  });
  if (rank_ == root) bytes_sent_ += static_cast<int64_t>(tensor.nbytes()) * (size() - 1);
}

std::vector<std::string> CheckedCommunicator::all_gather_bytes(const std::string& bytes) {
  CollectiveCall call;
  call.kind = Collective::kAllGatherBytes;
  call.own = static_cast<int64_t>(bytes.size());
  std::vector<std::string> strings(size());
  run(call, [&](const std::vector<CollectiveCall>& calls) {
    std::vector<int64_t> sizes;
    for (const auto& each : calls) sizes.push_back(each.own);
    if (std::any_of(sizes.begin(), sizes.end(), [](int64_t length) { return length > 0; }))
      strings = bytes_body(bytes, sizes);
  });
  return strings;
}

std::unique_ptr<Communicator> CheckedCommunicator::split(int group) {
  if (group < 0) refuse(fmt::format("split: group {} is below 0", group));
  CollectiveCall call;
  call.kind = Collective::kSplit;
  call.own = group;
  std::unique_ptr<Communicator> part;
  run(call, [&](const std::vector<CollectiveCall>& calls) {
    std::vector<int> members;
    RankNames part_names{fmt::format("{}/{}", names_.communicator, group), {}};
    for (int peer = 0; peer < size(); ++peer) {
      if (calls[peer].own != group) continue;
      members.push_back(peer);
      part_names.ranks.push_back(names_.ranks[peer]);
    }
    part = split_body(group, members, std::move(part_names));
  });
  return part;
}

}  // namespace muster::distributed
