#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace muster::checkpoints {

// A thread that does one job at a time, started with the first. It receives no signals. Jobs must not throw.
class WriterThread {
 public:
  WriterThread() = default;
  // Waits for the job.
  ~WriterThread();
  WriterThread(const WriterThread&) = delete;
  WriterThread& operator=(const WriterThread&) = delete;

  // Waits for the job before.
  void start(std::function<void()> job);
  // What the last job wrote may be read once this is true.
  bool idle();
  void wait();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> job_;
  bool busy_ = false;
  bool end_ = false;
  std::thread thread_;
};

}  // namespace muster::checkpoints
