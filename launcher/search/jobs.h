#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/run/run_lock.h"

namespace muster::launcher {

// jobs/ of a search's directory: a folder, with a lock in it, for each job that works on the search and for each that
// was lost. A job that ends normally leaves none. A file server may show a removed folder to another machine for some
// seconds longer, so that two jobs hold one: then the locks of the trials' runs keep them apart.
class Jobs {
 public:
  // While it lives, other jobs see that this one is running, and leave its trials alone. Its folder is removed together
  // with the lock.
  class Claim {
   public:
    Claim(std::string folder, std::unique_ptr<run::RunLock> lock, bool was_lost);
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

  // This job's, whose name no other has. Throws as RunLock.
  std::unique_ptr<Claim> claim(const std::string& name) const;
  // That of a job which is gone: whoever holds it may continue its trials. Null while that job, or another that has
  // taken it over, lives. `tell`: as LockSettings. Otherwise throws as RunLock.
  std::unique_ptr<Claim> take_over(const std::string& name, const std::function<void(const std::string&)>& tell) const;
  // Those that run, and those that were lost.
  std::vector<std::string> names() const;

 private:
  const std::string folder_;
};

}  // namespace muster::launcher
