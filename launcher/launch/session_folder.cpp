#include "launcher/launch/session_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <vector>

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;

const std::string kPrefix = "muster-launch-";
constexpr time_t kBeingMade =
    60;  // seconds in which a folder without a lock may belong to a launcher that has just begun

// A live launcher holds the lock of its folder, whatever container it runs in; process numbers would not tell.
void remove_if_left_behind(const fs::path& folder) {
  struct stat info;
  if (lstat(folder.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != geteuid()) return;
  const int lock = open((folder / "lock").c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (lock < 0 && std::time(nullptr) - info.st_mtime < kBeingMade) return;
  if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) == 0) {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }
  if (lock >= 0) close(lock);
}

}  // namespace

SessionFolder::SessionFolder() {
  const char* own = std::getenv("TMPDIR");
  for (const std::string& base : {std::string("/dev/shm"), std::string(own ? own : ""), std::string("/tmp")}) {
    if (base.empty() || access(base.c_str(), W_OK | X_OK) != 0) continue;
    std::vector<fs::path> found;
    std::error_code error;
    for (auto each = fs::directory_iterator(base, error); !error && each != fs::directory_iterator();
         each.increment(error))
      if (each->path().filename().string().compare(0, kPrefix.size(), kPrefix) == 0) found.push_back(each->path());
    for (const auto& folder : found) remove_if_left_behind(folder);
    std::string path = base + "/" + kPrefix + "XXXXXX";
    if (!mkdtemp(path.data())) continue;
    lock_ = open((path + "/lock").c_str(), O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
    if (lock_ >= 0 && flock(lock_, LOCK_EX | LOCK_NB) == 0) {
      path_ = path;
      return;
    }
    if (lock_ >= 0) close(lock_);
    lock_ = -1;
    fs::remove_all(path, error);
  }
}

SessionFolder::~SessionFolder() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
  if (lock_ >= 0) close(lock_);
}

std::map<std::string, std::string> SessionFolder::environment() const {
  if (path_.empty()) return {};
  return {{"OMPI_MCA_btl_vader_backing_directory", path_}, {"OMPI_MCA_orte_tmpdir_base", path_}};
}

std::unique_ptr<SessionFolder> session_folder_for(const JobCommand& job, const LaunchEnvironment& here,
                                                  std::map<std::string, std::string>& environment) {
  if (job.backend != LaunchBackend::kMpirun || !job.is_local) return nullptr;
  auto folder = std::make_unique<SessionFolder>();
  for (const auto& [name, value] : folder->environment())
    if (!here.environment.count(name)) environment.emplace(name, value);
  return folder;
}

}  // namespace muster::launcher
