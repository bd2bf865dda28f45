#include "distributed/threads.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>

#include "distributed/checked_communicator.h"

namespace muster::distributed {
namespace {

// One mutex and one condition variable for the whole job: plain, and fast enough for tests.
struct Job {
  Job(int ranks, std::chrono::duration<double> deadline) : deadline(deadline), fates(ranks) {}
  const std::chrono::duration<double> deadline;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> fates;  // of ranks that have ended: how; empty while a rank runs
  std::exception_ptr first_failure;
};

// What the ranks of one communicator share.
struct Board {
  explicit Board(size_t size) : arrivals(size), data(size), counts(size) {
    for (auto& each : calls) each.resize(size);
  }
  std::vector<int64_t> arrivals;  // how often each rank has arrived somewhere
  // By parity of the sequence number: a rank may be one collective ahead of a reader.
  std::vector<CollectiveCall> calls[2];
  std::vector<char*> data;
  std::vector<const std::vector<int64_t>*> counts;
  std::map<std::pair<int64_t, int>, std::shared_ptr<Board>> parts;  // being split off: by arrival and group
};

class ThreadCommunicator final : public CheckedCommunicator {
 public:
  ThreadCommunicator(RankNames names, int rank, std::shared_ptr<Job> job, std::shared_ptr<Board> board)
      : CheckedCommunicator(std::move(names), rank), job_(std::move(job)), board_(std::move(board)), calls_(size()) {}

  int local_rank() const override { return rank(); }
  int local_size() const override { return size(); }

  [[noreturn]] void abort(ExitCode code) override {
    throw Error(code,
                fmt::format("rank {} ended the job with exit code {}", names().ranks[rank()], static_cast<int>(code)));
  }

 private:
  const std::vector<CollectiveCall>& meet(const CollectiveCall& own) override {
    current_ = own;
    auto& calls = board_->calls[own.sequence % 2];
    calls[rank()] = own;
    arrive();
    calls_ = calls;
    return calls_;
  }

  // Returns when all ranks have arrived as often as this one. What was written to the board before is then seen by all.
  void arrive() {
    std::unique_lock lock(job_->mutex);
    const int64_t mine = ++board_->arrivals[rank()];
    job_->changed.notify_all();
    const auto start = std::chrono::steady_clock::now();
    while (true) {
      std::vector<int> missing;
      for (int peer = 0; peer < size(); ++peer)
        if (board_->arrivals[peer] < mine) missing.push_back(peer);
      if (missing.empty()) return;
      for (const int peer : missing)
        if (!job_->fates[names().ranks[peer]].empty())
          throw Error(ExitCode::kPeerFailed, fmt::format("rank {} does not reach {}, {}: it {}", names().ranks[peer],
                                                         place(current_, names().communicator), describe(current_),
                                                         job_->fates[names().ranks[peer]]));
      const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
      if (waited >= job_->deadline)
        throw Error(ExitCode::kPeerFailed, absence(current_, last_completed(), missing, waited.count(), names()));
      job_->changed.wait_for(lock, job_->deadline - waited);
    }
  }

  template <typename Scalar>
  void sum_slices(const at::Tensor& tensor) {
    const int64_t begin = tensor.numel() * rank() / size(), end = tensor.numel() * (rank() + 1) / size();
    auto* own = static_cast<Scalar*>(tensor.data_ptr());
    // Nobody else reads this rank's slice of anything before the next arrival, so it is summed in place.
    for (int64_t i = begin; i < end; ++i) {
      Scalar sum = reinterpret_cast<const Scalar*>(board_->data[0])[i];
      for (int peer = 1; peer < size(); ++peer) sum += reinterpret_cast<const Scalar*>(board_->data[peer])[i];
      own[i] = sum;
    }
  }

  void sum_body(const at::Tensor& tensor) override {
    board_->data[rank()] = static_cast<char*>(tensor.data_ptr());
    arrive();
    if (tensor.scalar_type() == at::kFloat)
      sum_slices<float>(tensor);
    else if (tensor.scalar_type() == at::kDouble)
      sum_slices<double>(tensor);
    else
      sum_slices<int64_t>(tensor);
    arrive();
    const int64_t width = tensor.element_size();
    for (int peer = 0; peer < size(); ++peer) {
      const int64_t begin = tensor.numel() * peer / size() * width, end = tensor.numel() * (peer + 1) / size() * width;
      if (peer != rank()) std::memcpy(board_->data[rank()] + begin, board_->data[peer] + begin, end - begin);
    }
    arrive();
  }

  void gather_body(const at::Tensor& rows, const std::vector<int64_t>& counts, const at::Tensor& gathered) override {
    board_->data[rank()] = static_cast<char*>(rows.data_ptr());
    arrive();
    const int64_t row_bytes = bytes_per_row(gathered);
    char* to = static_cast<char*>(gathered.data_ptr());
    for (int peer = 0; peer < size(); to += counts[peer++] * row_bytes)
      if (counts[peer] > 0) std::memcpy(to, board_->data[peer], counts[peer] * row_bytes);
    arrive();
  }

  void exchange_body(const at::Tensor& rows, const std::vector<int64_t>& sends, const std::vector<int64_t>& receives,
                     const at::Tensor& received) override {
    board_->data[rank()] = static_cast<char*>(rows.data_ptr());
    board_->counts[rank()] = &sends;
    arrive();
    const int64_t row_bytes = bytes_per_row(rows);
    char* to = static_cast<char*>(received.data_ptr());
    for (int peer = 0; peer < size(); to += receives[peer++] * row_bytes) {
      const auto& theirs = *board_->counts[peer];
      const int64_t start = std::accumulate(theirs.begin(), theirs.begin() + rank(), int64_t{0});
      if (receives[peer] > 0) std::memcpy(to, board_->data[peer] + start * row_bytes, receives[peer] * row_bytes);
    }
    arrive();
  }

  void broadcast_body(const at::Tensor& tensor, int root) override {
    board_->data[rank()] = static_cast<char*>(tensor.data_ptr());
    arrive();
    if (rank() != root) std::memcpy(board_->data[rank()], board_->data[root], tensor.nbytes());
    arrive();
  }

  std::vector<std::string> bytes_body(const std::string& bytes, const std::vector<int64_t>& sizes) override {
    board_->data[rank()] = const_cast<char*>(bytes.data());
    arrive();
    std::vector<std::string> strings;
    for (int peer = 0; peer < size(); ++peer) strings.emplace_back(board_->data[peer], sizes[peer]);
    arrive();
    return strings;
  }

  std::unique_ptr<Communicator> split_body(int group, const std::vector<int>& members, RankNames names) override {
    std::shared_ptr<Board> board;
    std::pair<int64_t, int> key;
    {
      const std::lock_guard lock(job_->mutex);
      key = {board_->arrivals[rank()], group};
      auto& part = board_->parts[key];
      if (!part) part = std::make_shared<Board>(members.size());
      board = part;
    }
    arrive();
    {
      const std::lock_guard lock(job_->mutex);
      board_->parts.erase(key);
    }
    const auto place = std::find(members.begin(), members.end(), rank()) - members.begin();
    return std::make_unique<ThreadCommunicator>(std::move(names), static_cast<int>(place), job_, std::move(board));
  }

  std::shared_ptr<Job> job_;
  std::shared_ptr<Board> board_;
  std::vector<CollectiveCall> calls_;
  CollectiveCall current_;
};

void run_rank(int rank, const RankNames& names, const std::shared_ptr<Job>& job, const std::shared_ptr<Board>& board,
              const std::function<void(Communicator&)>& body) {
  std::string fate = "has ended.";
  std::exception_ptr failure;
  try {
    ThreadCommunicator communicator(names, rank, job, board);
    body(communicator);
  } catch (const std::exception& error) {
    fate = fmt::format("has failed: {}", error.what());
    failure = std::current_exception();
  } catch (...) {
    fate = "has failed.";
    failure = std::current_exception();
  }
  const std::lock_guard lock(job->mutex);
  job->fates[rank] = fate;
  if (!job->first_failure) job->first_failure = failure;
  job->changed.notify_all();
}

}  // namespace

void run_as_threads(int ranks, const std::function<void(Communicator&)>& body, std::chrono::duration<double> deadline) {
  if (ranks < 1) throw Error(ExitCode::kInternal, fmt::format("run_as_threads: {} ranks", ranks));
  const auto job = std::make_shared<Job>(ranks, deadline);
  const auto board = std::make_shared<Board>(ranks);
  const RankNames names = world_names(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back([&, rank] { run_rank(rank, names, job, board, body); });
  for (auto& thread : threads) thread.join();
  if (job->first_failure) std::rethrow_exception(job->first_failure);
}

}  // namespace muster::distributed
