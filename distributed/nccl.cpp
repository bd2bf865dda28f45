#include "distributed/nccl.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <future>
#include <numeric>
#include <thread>

#include "distributed/collective_call.h"

namespace muster::distributed {
namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void refuse(const std::string& message) { throw Error(ExitCode::kInternal, message); }

ncclDataType_t sum_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return ncclFloat32;
    case at::kDouble: return ncclFloat64;
    case at::kLong: return ncclInt64;
    default:
      refuse(std::string("all_reduce_sum takes float32, float64 and int64 tensors, not ") + c10::toString(tensor.scalar_type()));
  }
}

int64_t total(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

int64_t bytes_per_row(const at::Tensor& rows) {
  int64_t bytes = rows.element_size();
  for (int64_t axis = 1; axis < rows.dim(); ++axis) bytes *= rows.size(axis);
  return bytes;
}

at::Tensor empty_rows(const at::Tensor& like, const std::vector<int64_t>& counts) {
  auto shape = like.sizes().vec();
  shape[0] = total(counts);
  return at::empty(shape, like.options().requires_grad(false));
}

char* at_byte(const at::Tensor& tensor, int64_t offset) { return static_cast<char*>(tensor.data_ptr()) + offset; }

bool checks_wanted() {
  const char* text = std::getenv("MUSTER_CHECK_COLLECTIVES");
  return text && std::strcmp(text, "1") == 0;
}

// Owns one ncclComm_t in non-blocking mode: no call of NCCL may hold up the host without end.
class NcclConnection {
 public:
  NcclConnection(const ncclUniqueId& id, int rank, int size, c10::Device device) : device_(device) {
    const c10::cuda::CUDAGuard guard(device_);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    // Half of what the ranks wait for each other elsewhere: all of them then learn of the failure in time.
    settle(ncclCommInitRankConfig(&comm_, size, id, rank, &config), "connecting the ranks' GPUs", collective_deadline() / 2);
  }

  // An error elsewhere may have left peers without us: then there is nothing to finish in good order.
  ~NcclConnection() {
    if (!comm_) return;
    const c10::cuda::CUDAGuard guard(device_);
    bool finished = false;
    if (std::uncaught_exceptions() == exceptions_when_made_) {
      ncclResult_t state = ncclCommFinalize(comm_);
      const auto end = Clock::now() + std::chrono::seconds(10);
      while (state == ncclInProgress && Clock::now() < end) {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess) break;
      }
      finished = state == ncclSuccess;
    }
    if (finished) ncclCommDestroy(comm_);
    else ncclCommAbort(comm_);
  }
  NcclConnection(const NcclConnection&) = delete;
  NcclConnection& operator=(const NcclConnection&) = delete;

  // Hands one operation (or, in a group, several) to NCCL: `operation(comm, stream)` returns NCCL's result. Returns when NCCL has put it
  // on the stream.
  template <typename Operation>
  void launch(const char* what, const Operation& operation) {
    if (!comm_) throw Error(ExitCode::kPeerFailed, std::string(what) + ": the connection between the GPUs has failed before");
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    settle(asked == ncclSuccess ? state : asked, what, collective_deadline());
    const c10::cuda::CUDAGuard guard(device_);
    settle(operation(comm_, c10::cuda::getCurrentCUDAStream(device_.index()).stream()), what, collective_deadline());
  }

  // Stops what runs on the GPU. From any thread; comes back even if NCCL does not.
  void abort() {
    if (!comm_) return;
    auto aborted = std::make_shared<std::promise<void>>();
    std::thread([comm = comm_, aborted] {
      ncclCommAbort(comm);
      aborted->set_value();
    }).detach();
    aborted->get_future().wait_for(std::chrono::seconds(2));
    comm_ = nullptr;
  }

 private:
  // Waits while NCCL works on what it has accepted; after an error, aborts and throws.
  void settle(ncclResult_t state, const char* what, std::chrono::duration<double> patience) {
    const auto begin = Clock::now();
    while (state == ncclInProgress) {
      if (Clock::now() - begin > patience) {
        fail(std::string(what) + ": the GPUs have not answered each other for " +
             std::to_string(static_cast<int64_t>(patience.count())) + " s");
      }
      // An operation takes NCCL some ten microseconds, connecting takes seconds.
      if (Clock::now() - begin < std::chrono::milliseconds(1)) std::this_thread::yield();
      else std::this_thread::sleep_for(std::chrono::microseconds(100));
      ncclResult_t now = ncclInProgress;
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &now);
      state = asked == ncclSuccess ? now : asked;
    }
    if (state == ncclSuccess) return;
    const char* detail = ncclGetLastError(comm_);
    fail(std::string(what) + ": NCCL reports \"" + ncclGetErrorString(state) + "\"" +
         (detail && *detail ? std::string(" (") + detail + ")" : std::string()));
  }

  [[noreturn]] void fail(const std::string& message) {
    abort();
    throw Error(ExitCode::kPeerFailed,
                message +
                    ". Either a rank has failed (look for its message), or the GPUs cannot reach each other: start with NCCL_DEBUG=INFO in "
                    "the environment to see what NCCL tries; NCCL_SOCKET_IFNAME names the network interface to use, NCCL_IB_DISABLE=1 and "
                    "NCCL_P2P_DISABLE=1 turn faulty InfiniBand and direct GPU links off");
  }

  ncclComm_t comm_ = nullptr;
  c10::Device device_;
  int exceptions_when_made_ = std::uncaught_exceptions();
};

class NcclCommunicator final : public Communicator {
 public:
  // `owned`: null, or `control` itself. `whole_job`: these are all of the job's ranks.
  NcclCommunicator(Communicator& control, std::unique_ptr<Communicator> owned, c10::Device device, bool whole_job)
      : owned_(std::move(owned)), control_(control), device_(device), whole_job_(whole_job) {
    if (!device.is_cuda() || !device.has_index()) refuse("NCCL needs a GPU with its number, not " + device.str());
    ncclUniqueId id;
    std::memset(&id, 0, sizeof id);
    together(control_, [&] {
      if (rank() != 0) return;
      if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess)
        throw Error(ExitCode::kPeerFailed, std::string("NCCL could not start: ") + ncclGetErrorString(result) +
                                               "; start with NCCL_DEBUG=INFO in the environment to see why");
    });
    const auto ids = control_.all_gather_bytes(rank() == 0 ? std::string(id.internal, sizeof id.internal) : std::string());
    std::memcpy(id.internal, ids[0].data(), sizeof id.internal);
    together(control_, [&] { connection_ = std::make_unique<NcclConnection>(id, rank(), size(), device_); });
  }

  int rank() const override { return control_.rank(); }
  int size() const override { return control_.size(); }
  int local_rank() const override { return control_.local_rank(); }
  int local_size() const override { return control_.local_size(); }
  int64_t bytes_sent() const override { return bytes_sent_ + control_.bytes_sent(); }
  std::vector<std::string> all_gather_bytes(const std::string& bytes) override { return control_.all_gather_bytes(bytes); }

  void all_reduce_sum(at::Tensor tensor) override {
    if (on_host(tensor)) return control_.all_reduce_sum(tensor);
    const ncclDataType_t type = sum_type(tensor);
    compare(describe_call(Collective::kAllReduceSum, tensor, false));
    bytes_sent_ += 2 * static_cast<int64_t>(tensor.nbytes()) * (size() - 1) / size();
    if (tensor.numel() == 0) return;
    used(tensor);
    connection_->launch("all_reduce_sum", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllReduce(tensor.data_ptr(), tensor.data_ptr(), tensor.numel(), type, ncclSum, comm, stream);
    });
  }

  at::Tensor all_gather_rows(const at::Tensor& rows, const std::vector<int64_t>& row_counts) override {
    if (on_host(rows)) return control_.all_gather_rows(rows, row_counts);
    require_rows(rows, row_counts, "all_gather_rows");
    if (rows.size(0) != row_counts[rank()])
      refuse("all_gather_rows: " + std::to_string(rows.size(0)) + " rows, but the counts say " + std::to_string(row_counts[rank()]));
    CollectiveCall call = describe_call(Collective::kAllGatherRows, rows, true);
    call.counts_hash = hash_of(row_counts);
    compare(call);
    bytes_sent_ += static_cast<int64_t>(rows.nbytes()) * (size() - 1);
    at::Tensor gathered = empty_rows(rows, row_counts);
    if (gathered.numel() == 0) return gathered;
    used(rows);
    const int64_t row_bytes = bytes_per_row(rows);
    const bool even = std::all_of(row_counts.begin(), row_counts.end(), [&](int64_t count) { return count == row_counts[0]; });
    connection_->launch("all_gather_rows", [&](ncclComm_t comm, cudaStream_t stream) {
      if (even) return ncclAllGather(rows.data_ptr(), gathered.data_ptr(), rows.nbytes(), ncclUint8, comm, stream);
      return group([&](const auto& add) {
        int64_t start = 0;
        for (int root = 0; root < size(); ++root) {
          const int64_t bytes = row_counts[root] * row_bytes;
          char* place = at_byte(gathered, start);
          if (bytes > 0)
            add(ncclBroadcast(root == rank() ? rows.data_ptr() : place, place, bytes, ncclUint8, root, comm, stream));
          start += bytes;
        }
      });
    });
    return gathered;
  }

  at::Tensor all_to_all_rows(const at::Tensor& rows, const std::vector<int64_t>& send_counts,
                             const std::vector<int64_t>& receive_counts) override {
    if (on_host(rows)) return control_.all_to_all_rows(rows, send_counts, receive_counts);
    require_rows(rows, send_counts, "all_to_all_rows, sends");
    require_rows(rows, receive_counts, "all_to_all_rows, receives");
    if (rows.size(0) != total(send_counts))
      refuse("all_to_all_rows: " + std::to_string(rows.size(0)) + " rows, but the counts say " + std::to_string(total(send_counts)));
    if (send_counts[rank()] != receive_counts[rank()])
      refuse("all_to_all_rows: a rank sends " + std::to_string(send_counts[rank()]) + " rows to itself and receives " +
             std::to_string(receive_counts[rank()]));
    CollectiveCall call = describe_call(Collective::kAllToAllRows, rows, true);
    for (int peer = 0; peer < size(); ++peer) {
      call.sends_hash += hash_of_transfer(rank(), peer, send_counts[peer]);
      call.receives_hash += hash_of_transfer(peer, rank(), receive_counts[peer]);
    }
    compare(call);
    const int64_t row_bytes = bytes_per_row(rows);
    bytes_sent_ += (rows.size(0) - send_counts[rank()]) * row_bytes;
    at::Tensor received = empty_rows(rows, receive_counts);
    if (row_bytes == 0) return received;
    used(rows);
    connection_->launch("all_to_all_rows", [&](ncclComm_t comm, cudaStream_t stream) {
      return group([&](const auto& add) {
        int64_t sent = 0, got = 0;
        for (int peer = 0; peer < size(); ++peer) {
          const int64_t send_bytes = send_counts[peer] * row_bytes, receive_bytes = receive_counts[peer] * row_bytes;
          if (send_bytes > 0) add(ncclSend(at_byte(rows, sent), send_bytes, ncclUint8, peer, comm, stream));
          if (receive_bytes > 0) add(ncclRecv(at_byte(received, got), receive_bytes, ncclUint8, peer, comm, stream));
          sent += send_bytes;
          got += receive_bytes;
        }
      });
    });
    return received;
  }

  void broadcast(at::Tensor tensor, int root) override {
    if (on_host(tensor)) return control_.broadcast(tensor, root);
    if (root < 0 || root >= size()) refuse("broadcast: there is no rank " + std::to_string(root) + " of " + std::to_string(size()));
    CollectiveCall call = describe_call(Collective::kBroadcast, tensor, false);
    call.root = root;
    compare(call);
    if (rank() == root) bytes_sent_ += static_cast<int64_t>(tensor.nbytes()) * (size() - 1);
    if (tensor.numel() == 0) return;
    used(tensor);
    connection_->launch("broadcast", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclBroadcast(tensor.data_ptr(), tensor.data_ptr(), tensor.nbytes(), ncclUint8, root, comm, stream);
    });
  }

  std::unique_ptr<Communicator> split(int group) override {
    auto part = control_.split(group);
    Communicator& ranks = *part;
    return std::make_unique<NcclCommunicator>(ranks, std::move(part), device_, false);
  }

  [[noreturn]] void abort(ExitCode code) override {
    if (connection_) connection_->abort();
    control_.abort(code);
    std::_Exit(static_cast<int>(code));
  }

 private:
  // Whether the control plane's backend serves the tensor; throws for what neither does.
  bool on_host(const at::Tensor& tensor) const {
    if (!tensor.defined() || tensor.layout() != at::kStrided || !tensor.is_contiguous()) refuse("collectives take contiguous tensors");
    if (tensor.is_cpu()) return true;
    if (tensor.device() != device_)
      refuse("this rank's collectives take tensors on the CPU and on " + device_.str() + ", not on " + tensor.device().str());
    return false;
  }

  void require_rows(const at::Tensor& rows, const std::vector<int64_t>& counts, const char* what) const {
    if (rows.dim() == 0) refuse(std::string(what) + ": a scalar has no rows");
    if (static_cast<int>(counts.size()) != size())
      refuse(std::string(what) + ": " + std::to_string(counts.size()) + " counts for " + std::to_string(size()) + " ranks");
    for (const int64_t count : counts)
      if (count < 0) refuse(std::string(what) + ": a count is " + std::to_string(count));
  }

  CollectiveCall describe_call(Collective kind, const at::Tensor& tensor, bool rows) {
    CollectiveCall call;
    call.sequence = ++sequence_;
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

  void compare(const CollectiveCall& own) {
    if (!check_) return;
    RankNames names{"the GPUs' communicator", {}};
    std::vector<CollectiveCall> calls(size());
    const auto all = control_.all_gather_bytes(std::string(reinterpret_cast<const char*>(&own), sizeof own));
    uint64_t sends = 0, receives = 0;
    for (int peer = 0; peer < size(); ++peer) {
      names.ranks.push_back(peer);
      std::memcpy(&calls[peer], all[peer].data(), sizeof own);
      sends += calls[peer].sends_hash;
      receives += calls[peer].receives_hash;
    }
    std::string message = disagreement(calls, names);
    if (message.empty() && sends != receives) message = "all_to_all_rows: the rows that ranks send are not those that the others expect";
    if (message.empty()) return;
    if (whole_job_) throw SharedError(ExitCode::kInternal, message);
    throw Error(ExitCode::kInternal, message);
  }

  // NCCL's kernels run on the current stream; memory that came from another one must not be given out again before they are done.
  void used(const at::Tensor& tensor) const {
    c10::cuda::CUDACachingAllocator::recordStream(tensor.storage().data_ptr(), c10::cuda::getCurrentCUDAStream(device_.index()));
  }

  // Several operations that NCCL starts together. Returns the first error of any, or the group's result.
  template <typename Body>
  static ncclResult_t group(const Body& body) {
    ncclResult_t first = ncclGroupStart();
    if (first != ncclSuccess) return first;
    body([&](ncclResult_t result) {
      if (first == ncclSuccess && result != ncclSuccess && result != ncclInProgress) first = result;
    });
    const ncclResult_t ended = ncclGroupEnd();
    return first != ncclSuccess ? first : ended;
  }

  std::unique_ptr<Communicator> owned_;  // outlives connection_
  Communicator& control_;
  c10::Device device_;
  bool whole_job_;
  std::unique_ptr<NcclConnection> connection_;
  bool check_ = checks_wanted();
  int64_t sequence_ = 0;
  int64_t bytes_sent_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, c10::Device device) {
  return std::make_unique<NcclCommunicator>(control, nullptr, device, true);
}

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> control, c10::Device device) {
  Communicator& ranks = *control;
  return std::make_unique<NcclCommunicator>(ranks, std::move(control), device, true);
}

std::string nccl_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "";
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

}  // namespace muster::distributed
