#include "launcher/search/jobs.h"

#include <fmt/format.h>

#include <filesystem>
#include <random>

#include "base/error.h"
#include "base/files.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;

constexpr const char* kOver = ".over-";  // the folder of a job that has ended, until it is removed
constexpr int kMostTries = 100;

void make(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error == std::errc::file_exists)
    fs::create_directories(folder, error);  // another job has made it, and ended, in the same moment
  if (error) throw Error(ExitCode::kIo, folder + " cannot be made: " + error.message());
}

}  // namespace

// Renamed while the lock is held: nobody who takes the folder over can lose it then, unless this process was suspended
// for so long that another job has taken the lock.
Jobs::Claim::~Claim() {
  // A unique name: another job may have had the same name, and still be removing its folder.
  const fs::path folder = folder_, over = folder.parent_path() / fmt::format("{}{}-{}", kOver, std::random_device{}(),
                                                                             folder.filename().string());
  std::error_code ignored;
  try {
    lock_->check();
    fs::rename(folder, over, ignored);
  } catch (const Error&) {
    // Another job has taken it over.
  }
  lock_.reset();
  fs::remove_all(over, ignored);
}

std::unique_ptr<Jobs::Claim> Jobs::claim(const std::string& name) const {
  for (const auto& entry : list_folder(folder_))
    if (std::error_code ignored; entry.rfind(kOver, 0) == 0)
      fs::remove_all(folder_ + "/" + entry, ignored);  // its job died while removing it
  const std::string folder = folder_ + "/" + name;
  make(folder);
  return std::make_unique<Claim>(folder, std::make_unique<run::RunLock>(folder), false);
}

std::unique_ptr<Jobs::Claim> Jobs::take_over(const std::string& name,
                                             const std::function<void(const std::string&)>& tell) const {
  const std::string folder = folder_ + "/" + name;
  run::LockSettings settings;
  settings.tell = tell;
  for (int tries = 1;; ++tries) {
    make(folder);  // a job that was asked to stop has left trials, but no folder
    std::error_code ignored;
    const bool was_lost = fs::exists(folder + "/lock", ignored);
    try {
      return std::make_unique<Claim>(folder, std::make_unique<run::RunLock>(folder, run::job_identity(), settings),
                                     was_lost);
    } catch (const run::NoRunDirectory&) {
      if (tries == kMostTries) throw;  // until then: whoever had it has just ended
    } catch (const run::RunDirInUse&) {
      return nullptr;
    }
  }
}

std::vector<std::string> Jobs::names() const {
  std::vector<std::string> names;
  std::error_code ignored;
  // Without a lock: a job that is about to begin, and has no trials yet.
  for (const auto& name : list_folder(folder_))
    if (name.rfind(kOver, 0) != 0 && fs::exists(folder_ + "/" + name + "/lock", ignored)) names.push_back(name);
  return names;
}

}  // namespace muster::launcher
