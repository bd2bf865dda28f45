#include "distributed/nccl.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <future>
#include <thread>

#include "distributed/checked_communicator.h"
#include "distributed/watchdog.h"

namespace muster::distributed {
namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void refuse_call(const std::string& message) { throw Error(ExitCode::kInternal, message); }

ncclDataType_t sum_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat    ? ncclFloat32
         : tensor.scalar_type() == at::kDouble ? ncclFloat64
                                               : ncclInt64;
}

int64_t bytes_of(const at::Tensor& tensor) { return static_cast<int64_t>(tensor.nbytes()); }

char* at_byte(const at::Tensor& tensor, int64_t offset) { return static_cast<char*>(tensor.data_ptr()) + offset; }

bool checks_wanted() {
  const char* text = std::getenv("MUSTER_CHECK_COLLECTIVES");
  return text && std::strcmp(text, "1") == 0;
}

// Owns one ncclComm_t in non-blocking mode: no call of NCCL may block the host without a limit.
class NcclConnection {
 public:
  NcclConnection(const ncclUniqueId& id, int rank, int size, c10::Device device) : device_(device) {
    const c10::cuda::CUDAGuard guard(device_);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    // Half of the timeout elsewhere, so that all ranks learn of the failure in time.
    ncclComm_t comm = nullptr;
    const ncclResult_t begun = ncclCommInitRankConfig(&comm, size, id, rank, &config);
    comm_ = comm;
    await(begun, "connecting the ranks' GPUs", collective_deadline() / 2);
  }

  // After an error elsewhere the peers may not be here: then there is nothing to finalize together.
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
    if (finished)
      ncclCommDestroy(comm_);
    else
      abort();
  }
  NcclConnection(const NcclConnection&) = delete;
  NcclConnection& operator=(const NcclConnection&) = delete;

  // Hands one operation (or, in a group, several) to NCCL: `operation(comm, stream)` returns NCCL's result. Returns
  // when NCCL has put it on the stream.
  template <typename Operation>
  void launch(const char* what, const Operation& operation) {
    if (!comm_)
      throw Error(ExitCode::kPeerFailed, fmt::format("{}: the connection between the GPUs has failed before", what));
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    await(asked == ncclSuccess ? state : asked, what, collective_deadline());
    const c10::cuda::CUDAGuard guard(device_);
    await(operation(comm_, c10::cuda::getCurrentCUDAStream(device_.index()).stream()), what, collective_deadline());
  }

  // Stops what runs on the GPU. From any thread; returns even if NCCL does not.
  void abort() {
    ncclComm_t const comm = comm_.exchange(nullptr);
    if (!comm) return;
    auto aborted = std::make_shared<std::promise<void>>();
    std::thread([comm, aborted] {
      ncclCommAbort(comm);
      aborted->set_value();
    }).detach();
    aborted->get_future().wait_for(std::chrono::seconds(2));
  }

 private:
  // Waits until NCCL has accepted an operation; aborts and throws after an error.
  void await(ncclResult_t state, const char* what, std::chrono::duration<double> patience) {
    const auto begin = Clock::now();
    while (state == ncclInProgress) {
      if (Clock::now() - begin > patience) {
        fail(fmt::format("{}: the GPUs have not answered each other for {:.0f} s", what, patience.count()));
      }
      // An operation takes NCCL some ten microseconds, connecting takes seconds.
      if (Clock::now() - begin < std::chrono::milliseconds(1))
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      ncclResult_t now = ncclInProgress;
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &now);
      state = asked == ncclSuccess ? now : asked;
    }
    if (state == ncclSuccess) return;
    const char* detail = ncclGetLastError(comm_);
    fail(fmt::format("{}: NCCL reports \"{}\"{}", what, ncclGetErrorString(state),
                     detail && *detail ? fmt::format(" ({})", detail) : ""));
  }

  [[noreturn]] void fail(const std::string& message) {
    abort();
    throw Error(ExitCode::kPeerFailed,
                fmt::format("{}. Either a rank has failed (look for its message), or the GPUs cannot reach each other: "
                            "start with NCCL_DEBUG=INFO in the environment to see what NCCL tries; NCCL_SOCKET_IFNAME "
                            "names the network interface to use, NCCL_IB_DISABLE=1 and NCCL_P2P_DISABLE=1 turn faulty "
                            "InfiniBand and direct GPU links off",
                            message));
  }

  std::atomic<ncclComm_t> comm_{nullptr};
  c10::Device device_;
  int exceptions_when_made_ = std::uncaught_exceptions();
  const AbortHook hook_{[this] { abort(); }};
};

// CPU tensors and bytes go to the control plane, which checks and counts them itself; what reaches the base class is
// CUDA tensors.
class NcclCommunicator final : public CheckedCommunicator {
 public:
  // `owned`: `control` itself for the part of a split, null for the world.
  NcclCommunicator(Communicator& control, std::unique_ptr<Communicator> owned, c10::Device device, RankNames names)
      : CheckedCommunicator(std::move(names), control.rank(), true),
        owned_(std::move(owned)),
        control_(control),
        device_(device) {
    if (!device.is_cuda() || !device.has_index())
      refuse_call(fmt::format("NCCL needs a GPU with its index, not {}", device.str()));
    ncclUniqueId id;
    std::memset(&id, 0, sizeof id);
    run_on_all_ranks(control_, [&] {
      if (rank() != 0) return;
      if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess)
        throw Error(ExitCode::kPeerFailed,
                    fmt::format("NCCL could not start: {}; start with NCCL_DEBUG=INFO in the environment to see why",
                                ncclGetErrorString(result)));
    });
    const auto ids =
        control_.all_gather_bytes(rank() == 0 ? std::string(id.internal, sizeof id.internal) : std::string());
    std::memcpy(id.internal, ids[0].data(), sizeof id.internal);
    run_on_all_ranks(control_, [&] { connection_ = std::make_unique<NcclConnection>(id, rank(), size(), device_); });
  }

  int local_rank() const override { return control_.local_rank(); }
  int local_size() const override { return control_.local_size(); }
  int64_t bytes_sent() const override { return CheckedCommunicator::bytes_sent() + control_.bytes_sent(); }
  std::vector<std::string> all_gather_bytes(const std::string& bytes) override {
    return control_.all_gather_bytes(bytes);
  }

  void all_reduce_sum(at::Tensor tensor) override {
    on_host(tensor) ? control_.all_reduce_sum(tensor) : CheckedCommunicator::all_reduce_sum(tensor);
  }
  at::Tensor all_gather_rows(const at::Tensor& rows, const std::vector<int64_t>& row_counts) override {
    return on_host(rows) ? control_.all_gather_rows(rows, row_counts)
                         : CheckedCommunicator::all_gather_rows(rows, row_counts);
  }
  at::Tensor all_to_all_rows(const at::Tensor& rows, const std::vector<int64_t>& send_counts,
                             const std::vector<int64_t>& receive_counts) override {
    return on_host(rows) ? control_.all_to_all_rows(rows, send_counts, receive_counts)
                         : CheckedCommunicator::all_to_all_rows(rows, send_counts, receive_counts);
  }
  void broadcast(at::Tensor tensor, int root) override {
    on_host(tensor) ? control_.broadcast(tensor, root) : CheckedCommunicator::broadcast(tensor, root);
  }

  [[noreturn]] void abort(ExitCode code) override {
    if (connection_) connection_->abort();
    control_.abort(code);
    std::_Exit(static_cast<int>(code));
  }

 private:
  static bool on_host(const at::Tensor& tensor) { return tensor.defined() && tensor.is_cpu(); }

  void require_device(const at::Tensor& tensor) const override {
    if (tensor.device() != device_)
      refuse_call(fmt::format("this rank's collectives take tensors on the CPU and on {}, not on {}", device_.str(),
                              tensor.device().str()));
  }

  // Through the control plane, on request and for split(), which needs the others' groups. Otherwise the other ranks'
  // calls are assumed to be the same as this one's.
  const std::vector<CollectiveCall>& meet(const CollectiveCall& own) override {
    calls_.assign(size(), own);
    if (check_ || own.kind == Collective::kSplit) {
      const auto all = control_.all_gather_bytes({reinterpret_cast<const char*>(&own), sizeof own});
      for (int peer = 0; peer < size(); ++peer) std::memcpy(&calls_[peer], all[peer].data(), sizeof own);
    } else {
      for (auto& call : calls_) call.sends_hash = call.receives_hash = 0;  // these match only together with the others'
    }
    return calls_;
  }

  void sum_body(const at::Tensor& tensor) override {
    used(tensor);
    connection_->launch("all_reduce_sum", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllReduce(tensor.data_ptr(), tensor.data_ptr(), tensor.numel(), sum_type(tensor), ncclSum, comm,
                           stream);
    });
  }

  void gather_body(const at::Tensor& rows, const std::vector<int64_t>& counts, const at::Tensor& gathered) override {
    used(rows);
    const int64_t row_bytes = bytes_per_row(gathered);
    const bool even = std::all_of(counts.begin(), counts.end(), [&](int64_t count) { return count == counts[0]; });
    connection_->launch("all_gather_rows", [&](ncclComm_t comm, cudaStream_t stream) {
      if (even) return ncclAllGather(rows.data_ptr(), gathered.data_ptr(), bytes_of(rows), ncclUint8, comm, stream);
      return group([&](const auto& add) {
        int64_t start = 0;
        for (int root = 0; root < size(); ++root) {
          const int64_t bytes = counts[root] * row_bytes;
          char* place = at_byte(gathered, start);
          if (bytes > 0)
            add(ncclBroadcast(root == rank() ? rows.data_ptr() : place, place, bytes, ncclUint8, root, comm, stream));
          start += bytes;
        }
      });
    });
  }

  void exchange_body(const at::Tensor& rows, const std::vector<int64_t>& sends, const std::vector<int64_t>& receives,
                     const at::Tensor& received) override {
    used(rows);
    const int64_t row_bytes = bytes_per_row(rows);
    connection_->launch("all_to_all_rows", [&](ncclComm_t comm, cudaStream_t stream) {
      return group([&](const auto& add) {
        int64_t sent = 0, got = 0;
        for (int peer = 0; peer < size(); ++peer) {
          const int64_t send_bytes = sends[peer] * row_bytes, receive_bytes = receives[peer] * row_bytes;
          if (send_bytes > 0) add(ncclSend(at_byte(rows, sent), send_bytes, ncclUint8, peer, comm, stream));
          if (receive_bytes > 0) add(ncclRecv(at_byte(received, got), receive_bytes, ncclUint8, peer, comm, stream));
          sent += send_bytes;
          got += receive_bytes;
        }
      });
    });
  }

  void broadcast_body(const at::Tensor& tensor, int root) override {
    used(tensor);
    connection_->launch("broadcast", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclBroadcast(tensor.data_ptr(), tensor.data_ptr(), bytes_of(tensor), ncclUint8, root, comm, stream);
    });
  }

  std::vector<std::string> bytes_body(const std::string& bytes, const std::vector<int64_t>&) override {
    return control_.all_gather_bytes(bytes);
  }

  std::unique_ptr<Communicator> split_body(int group, const std::vector<int>&, RankNames names) override {
    auto part = control_.split(group);
    Communicator& ranks = *part;
    return std::make_unique<NcclCommunicator>(ranks, std::move(part), device_, std::move(names));
  }

  // NCCL's kernels run on the current stream; memory allocated on another one must not be reused before they are done.
  void used(const at::Tensor& tensor) const {
    c10::cuda::CUDACachingAllocator::recordStream(tensor.storage().data_ptr(),
                                                  c10::cuda::getCurrentCUDAStream(device_.index()));
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
  std::unique_ptr<NcclConnection> connection_;
  bool check_ = checks_wanted();
  std::vector<CollectiveCall> calls_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, c10::Device device) {
  return std::make_unique<NcclCommunicator>(control, nullptr, device, world_names(control.size()));
}

std::string nccl_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "";
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace muster::distributed
