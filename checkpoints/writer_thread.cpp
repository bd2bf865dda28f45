#include "checkpoints/writer_thread.h"

#include <pthread.h>
#include <signal.h>

namespace muster::checkpoints {

WriterThread::~WriterThread() {
  {
    std::unique_lock lock(mutex_);
    end_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void WriterThread::start(std::function<void()> job) {
  if (!thread_.joinable()) {
    // Inherited by the new thread: signals are for the thread that trains.
    sigset_t all, before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { run(); });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !busy_; });
  job_ = std::move(job);
  busy_ = true;
  changed_.notify_all();
}

bool WriterThread::idle() {
  std::unique_lock lock(mutex_);
  return !busy_;
}

void WriterThread::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !busy_; });
}

void WriterThread::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return busy_ || end_; });
    if (!busy_) return;
    const auto job = std::move(job_);
    job_ = nullptr;
    lock.unlock();
    job();
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace muster::checkpoints
