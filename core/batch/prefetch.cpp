#include "core/batch/prefetch.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <omp.h>

#include "base/error.h"

namespace muster::batch {

Prefetcher::Prefetcher(const BatchReader& reader, int64_t ahead) : reader_(reader), ahead_(static_cast<size_t>(ahead)) {
  if (!reader.device().is_cpu())
    stream_ = c10::impl::VirtualGuardImpl(reader.device().type()).getStreamFromGlobalPool(reader.device());
  thread_ = std::thread([this] { work(); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Prefetcher::request(std::vector<int64_t> samples, std::vector<int64_t> batch_index, at::Tensor presence) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    requests_.push_back({std::move(samples), std::move(batch_index), std::move(presence)});
  }
  changed_.notify_all();
  ++not_taken_;
}

Batch Prefetcher::next() {
  if (not_taken_ == 0) throw Error(ExitCode::kInternal, "no batch was asked for");
  --not_taken_;
  Ready ready;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty(); });
    ready = std::move(ready_.front());
    ready_.pop_front();
  }
  changed_.notify_all();
  if (ready.error) std::rethrow_exception(ready.error);
  if (ready.uploaded) {
    const c10::Stream current = c10::impl::VirtualGuardImpl(reader_.device().type()).getStream(reader_.device());
    ready.uploaded->block(current);
    // The memory belongs to the upload stream: it must not be given out again before this stream is done with it.
    for (const auto& modality : ready.batch.modalities) modality.values.record_stream(current);
    if (ready.batch.labels.defined()) ready.batch.labels.record_stream(current);
  }
  return std::move(ready.batch);
}

Prefetcher::Ready Prefetcher::read(const Request& request) {
  Ready ready;
  try {
    if (!stream_) {
      ready.batch = reader_.read(request.samples, request.batch_index, request.presence);
      return ready;
    }
    const c10::StreamGuard on_stream(*stream_);
    ready.batch = reader_.read(request.samples, request.batch_index, request.presence);
    ready.uploaded.emplace(stream_->device_type());
    ready.uploaded->record(*stream_);
  } catch (...) {
    ready.error = std::current_exception();
  }
  return ready;
}

void Prefetcher::work() {
  // This thread's share of OpenMP: a team of its own would take the cores from the computation.
  omp_set_num_threads(1);
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || (!requests_.empty() && ready_.size() < ahead_); });
    if (stop_) return;
    const Request request = std::move(requests_.front());
    requests_.pop_front();
    lock.unlock();
    Ready ready = read(request);
    lock.lock();
    ready_.push_back(std::move(ready));
    changed_.notify_all();
  }
}

}  // namespace muster::batch
