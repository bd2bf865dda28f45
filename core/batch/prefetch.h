#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "core/batch/reader.h"

namespace muster::batch {

// Reads batches in a thread of its own while earlier ones are being computed with. For a reader on a GPU the upload
// runs on a stream of its own too, and next() makes the current stream, not the host, wait for it. All functions are
// for one thread; the reader must outlive this and may be used by others at the same time.
class Prefetcher {
 public:
  // `ahead`: how many batches may lie ready. Each holds its frames in memory.
  explicit Prefetcher(const BatchReader& reader, int64_t ahead = 2);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // Asks for one more batch, as BatchReader::read().
  void request(std::vector<int64_t> samples, std::vector<int64_t> batch_index, at::Tensor presence = {});

  // The oldest batch asked for and not yet taken. Throws what reading it threw; Error(kInternal) when none was asked
  // for.
  Batch next();

 private:
  struct Request {
    std::vector<int64_t> samples;
    std::vector<int64_t> batch_index;
    at::Tensor presence;
  };
  struct Ready {
    Batch batch;
    std::optional<c10::Event> uploaded;
    std::exception_ptr error;
  };
  void work();
  Ready read(const Request& request);

  const BatchReader& reader_;
  const size_t ahead_;
  std::optional<c10::Stream> stream_;  // on a GPU
  int64_t not_taken_ = 0;              // batches asked for; not the thread's

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> requests_;
  std::deque<Ready> ready_;
  bool stop_ = false;
  std::thread thread_;  // last: it uses the members above
};

}  // namespace muster::batch
