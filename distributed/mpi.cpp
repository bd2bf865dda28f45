// Open MPI 4's header otherwise brings in the removed C++ bindings and needs their library.
#define OMPI_SKIP_MPICXX 1
#include <fmt/format.h>
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <thread>

#include "distributed/checked_communicator.h"
#include "distributed/watchdog.h"
#include "distributed/watchdog_thread.h"

namespace muster::distributed {
namespace {

using Clock = std::chrono::steady_clock;

// Waits for peers. A late peer may be waiting for this very core when there are more ranks than cores, or other jobs.
// So after some tests of the requests (a running peer arrives within microseconds) the core is yielded, and after a
// millisecond this rank sleeps for a small part of the time waited so far, which bounds how late it can be itself.
class Patience {
 public:
  // To be called between two tests. Returns whether the wait is long enough for other checks.
  bool wait() {
    if (++tests_ < kSpins) return false;
    const auto waited = Clock::now() - begin_;
    if (waited < std::chrono::milliseconds(1))
      ::sched_yield();
    else
      std::this_thread::sleep_for(std::min<Clock::duration>(waited / 20, std::chrono::milliseconds(1)));
    return true;
  }

 private:
  static constexpr int kSpins = 200;
  int64_t tests_ = 0;
  const Clock::time_point begin_ = Clock::now();
};

void check(int status, const char* function) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw Error(ExitCode::kPeerFailed, fmt::format("{} failed: {}. Another rank or the network has failed; see its log.",
                                                 function, std::string(text, length)));
}

MPI_Datatype mpi_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat    ? MPI_FLOAT
         : tensor.scalar_type() == at::kDouble ? MPI_DOUBLE
                                               : MPI_INT64_T;
}

class MpiCommunicator final : public CheckedCommunicator {
 public:
  // Takes over `comm`. `watchdog`: null for the world, which starts it. Collective over it.
  MpiCommunicator(MPI_Comm comm, RankNames names, int rank, std::shared_ptr<Watchdog> watchdog, int64_t largest_bytes)
      : CheckedCommunicator(std::move(names), rank, true),
        comm_(comm),
        is_world_(!watchdog),
        largest_bytes_(largest_bytes),
        calls_(size()),
        watchdog_(std::move(watchdog)) {
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    check(MPI_Comm_dup(comm_, &calls_comm_), "MPI_Comm_dup");
    MPI_Comm machine;
    check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &machine), "MPI_Comm_split_type");
    MPI_Comm_rank(machine, &local_rank_);
    MPI_Comm_size(machine, &local_size_);
    MPI_Comm_free(&machine);
    // Receives first; each rank begins with the one after it, so that not all start with rank 0.
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank + step) % size();
      check(MPI_Recv_init(&calls_[peer], sizeof(CollectiveCall), MPI_BYTE, peer, 0, calls_comm_,
                          &requests_.emplace_back()),
            "MPI_Recv_init");
    }
    for (int step = 1; step < size(); ++step)
      check(MPI_Send_init(&calls_[rank], sizeof(CollectiveCall), MPI_BYTE, (rank + step) % size(), 0, calls_comm_,
                          &requests_.emplace_back()),
            "MPI_Send_init");
    if (!is_world_) return;
    watchdog_ = std::make_shared<Watchdog>(rank, size(), [&](const std::string& own) {
      std::string all(own.size() * size(), '\0');
      check(MPI_Allgather(own.data(), static_cast<int>(own.size()), MPI_BYTE, all.data(), static_cast<int>(own.size()),
                          MPI_BYTE, comm_),
            "MPI_Allgather");
      std::vector<std::string> parts;
      for (size_t start = 0; start < all.size(); start += own.size()) parts.push_back(all.substr(start, own.size()));
      return parts;
    });
  }

  ~MpiCommunicator() override {
    if (is_world_) leave_together();
    for (auto& request : requests_) MPI_Request_free(&request);
    MPI_Comm_free(&calls_comm_);
    MPI_Comm_free(&comm_);
    if (is_world_) MPI_Finalize();
  }

  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }

  [[noreturn]] void abort(ExitCode code) override {
    yield_to_watchdog(code);
    watchdog_->announce_abort(code);
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
    std::_Exit(static_cast<int>(code));
  }

 private:
  const std::vector<CollectiveCall>& meet(const CollectiveCall& own) override {
    calls_[rank()] = own;
    if (requests_.empty()) return calls_;  // a group of one; MPI_Startall refuses an empty list
    const int count = static_cast<int>(requests_.size());
    check(MPI_Startall(count, requests_.data()), "MPI_Startall");
    for (Patience patience;;) {
      int all = 0;
      check(MPI_Testall(count, requests_.data(), &all, MPI_STATUSES_IGNORE), "MPI_Testall");
      if (all) return calls_;
      if (patience.wait() && watchdog_->asks_who_is_absent()) report_absence();
    }
  }

  [[noreturn]] void report_absence() {
    std::vector<int> missing;
    for (int step = 1; step < size(); ++step) {
      int came = 0;
      MPI_Request_get_status(requests_[step - 1], &came, MPI_STATUS_IGNORE);
      if (!came) missing.push_back(names().ranks[(rank() + step) % size()]);
    }
    watchdog_->absent(missing);
  }

  // Before the watchdogs stop, and before MPI_Finalize, which waits for all ranks without a limit. A rank that calls
  // another collective instead is out of step; after its error it comes here too.
  void leave_together() {
    while (true) {
      try {
        meet_for_the_last_time();
        break;
      } catch (const SharedError& error) {
        if (rank() == 0) std::fprintf(stderr, "muster: %s\n", error.what());
      } catch (const Error& error) {
        abort(error.code());
      }
    }
    watchdog_.reset();
  }

  void sum_body(const at::Tensor& tensor) override {
    char* data = static_cast<char*>(tensor.data_ptr());
    const int64_t piece = std::max<int64_t>(1, largest_bytes_ / tensor.element_size());
    for (int64_t done = 0; done < tensor.numel(); done += piece)
      check(MPI_Allreduce(MPI_IN_PLACE, data + done * tensor.element_size(),
                          static_cast<int>(std::min(piece, tensor.numel() - done)), mpi_type(tensor), MPI_SUM, comm_),
            "MPI_Allreduce");
  }

  void gather_body(const at::Tensor& rows, const std::vector<int64_t>& counts, const at::Tensor& gathered) override {
    std::vector<int64_t> sizes;
    for (const int64_t count : counts) sizes.push_back(count * bytes_per_row(gathered));
    gather(rows.data_ptr(), sizes, static_cast<char*>(gathered.data_ptr()));
  }

  void exchange_body(const at::Tensor& rows, const std::vector<int64_t>& sends, const std::vector<int64_t>& receives,
                     const at::Tensor& received) override {
    const int64_t row_bytes = bytes_per_row(rows);
    const char* from = static_cast<const char*>(rows.data_ptr());
    char* to = static_cast<char*>(received.data_ptr());
    // Point to point, not MPI_Alltoallv: its counts are int, and whether they fit is not known on every rank.
    std::vector<MPI_Request> requests;
    const auto in_pieces = [&](int64_t bytes, const auto& start) {
      for (int64_t done = 0; done < bytes; done += largest_bytes_)
        start(done, static_cast<int>(std::min(largest_bytes_, bytes - done)), &requests.emplace_back());
    };
    const auto offset = [&](const std::vector<int64_t>& counts, int peer) {
      return std::accumulate(counts.begin(), counts.begin() + peer, int64_t{0}) * row_bytes;
    };
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() + size() - step) % size();
      in_pieces(receives[peer] * row_bytes,
                [&, start = to + offset(receives, peer)](int64_t done, int count, MPI_Request* request) {
                  check(MPI_Irecv(start + done, count, MPI_BYTE, peer, 0, comm_, request), "MPI_Irecv");
                });
    }
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() + step) % size();
      in_pieces(sends[peer] * row_bytes,
                [&, start = from + offset(sends, peer)](int64_t done, int count, MPI_Request* request) {
                  check(MPI_Isend(start + done, count, MPI_BYTE, peer, 0, comm_, request), "MPI_Isend");
                });
    }
    if (sends[rank()] > 0)
      std::memcpy(to + offset(receives, rank()), from + offset(sends, rank()), sends[rank()] * row_bytes);
    check(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
  }

  void broadcast_body(const at::Tensor& tensor, int root) override {
    broadcast_raw(static_cast<char*>(tensor.data_ptr()), static_cast<int64_t>(tensor.nbytes()), root);
  }

  std::vector<std::string> bytes_body(const std::string& bytes, const std::vector<int64_t>& sizes) override {
    std::string all(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), '\0');
    gather(bytes.data(), sizes, all.data());
    std::vector<std::string> strings;
    int64_t start = 0;
    for (const int64_t length : sizes) strings.push_back(all.substr(start, length)), start += length;
    return strings;
  }

  std::unique_ptr<Communicator> split_body(int group, const std::vector<int>& members, RankNames names) override {
    MPI_Comm part;
    check(MPI_Comm_split(comm_, group, rank(), &part), "MPI_Comm_split");
    const auto place = std::find(members.begin(), members.end(), rank()) - members.begin();
    return std::make_unique<MpiCommunicator>(part, std::move(names), static_cast<int>(place), watchdog_,
                                             largest_bytes_);
  }

  // `sizes`: bytes of every rank.
  void gather(const void* own, const std::vector<int64_t>& sizes, char* all) {
    const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    if (total <= largest_bytes_) {
      const std::vector<int> counts(sizes.begin(), sizes.end());
      std::vector<int> starts(counts.size(), 0);
      std::partial_sum(counts.begin(), counts.end() - 1, starts.begin() + 1);
      check(MPI_Allgatherv(own, counts[rank()], MPI_BYTE, all, counts.data(), starts.data(), MPI_BYTE, comm_),
            "MPI_Allgatherv");
      return;
    }
    int64_t start = 0;
    for (int peer = 0; peer < size(); start += sizes[peer++]) {
      if (peer == rank() && sizes[peer] > 0) std::memcpy(all + start, own, sizes[peer]);
      broadcast_raw(all + start, sizes[peer], peer);
    }
  }

  void broadcast_raw(char* data, int64_t bytes, int root) {
    for (int64_t done = 0; done < bytes; done += largest_bytes_)
      check(MPI_Bcast(data + done, static_cast<int>(std::min(largest_bytes_, bytes - done)), MPI_BYTE, root, comm_),
            "MPI_Bcast");
  }

  MPI_Comm comm_;
  // The calls have a communicator of their own, so that they can never be mixed up with data.
  MPI_Comm calls_comm_;
  bool is_world_;
  int64_t largest_bytes_;
  std::vector<CollectiveCall> calls_;
  std::vector<MPI_Request> requests_;  // persistent: receives of the calls of rank + 1, rank + 2, ..., then the sends
  int local_rank_ = 0;
  int local_size_ = 1;
  std::shared_ptr<Watchdog> watchdog_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(int64_t largest_bytes) {
  timeout_from_environment();  // reports a wrong setting before MPI starts, not when the first rank is late
  check(MPI_Init(nullptr, nullptr), "MPI_Init");
  int rank = 0, size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm comm;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  return std::make_unique<MpiCommunicator>(comm, world_names(size), rank, nullptr, largest_bytes);
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string whole(text, length);
  return whole.substr(0, whole.find(','));  // the rest is build details
}

std::string mpi_headers_version() {
#if defined(OMPI_MAJOR_VERSION)
  return fmt::format("Open MPI {}.{}.{}", OMPI_MAJOR_VERSION, OMPI_MINOR_VERSION, OMPI_RELEASE_VERSION);
#elif defined(MPICH_VERSION)
  return "MPICH " MPICH_VERSION;
#else
  return "";
#endif
}

}  // namespace muster::distributed
