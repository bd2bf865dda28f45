#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/run/run_lock.h"

namespace muster::launcher {

// jobs/ of a search's directory: a folder, with a lock in it, for each job that works on the search and for each that
// was lost. A job that ends normally leaves none. A file server may show a removed folder to another machine for a few
// seconds, so two jobs may hold the same one: then the locks of the trials' runs keep them apart.
class Jobs {
 public:
  // As long as it exists, other jobs see that this one is running, and leave its trials alone. Its folder is removed
  // together with the lock.
  class Claim {
   public:
    Claim(std::string folder, std::unique_ptr<run::RunLock> lock, bool was_lost)
        : folder_(std::move(folder)), lock_(std::move(lock)), was_lost_(was_lost) {}
    ~Claim();
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
    // Of a job that was taken over: whether it did not end normally.
    bool was_lost() const { return was_lost_; }

   private:
    const std::string folder_;
    std::unique_ptr<run::RunLock> lock_;
    const bool was_lost_;
  };

  explicit Jobs(std::string folder) : folder_(std::move(folder)) {}

  // Claims this job, whose name no other has. Throws as RunLock.
  std::unique_ptr<Claim> claim(const std::string& name) const;
  // Claims a job that is gone: whoever holds it may continue its trials. Null while that job, or another that has taken
  // it over, is running. `tell`: as LockSettings. Otherwise throws as RunLock.
  std::unique_ptr<Claim> take_over(const std::string& name, const std::function<void(const std::string&)>& tell) const;
  // Of the jobs that are running, and of those that were lost.
  std::vector<std::string> names() const;

 private:
  const std::string folder_;
};

}  // namespace muster::launcher
