#include "launcher/launch/session_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;

const std::string kPrefix = "muster-launch-";
constexpr double kBeingMade = 60;  // seconds in which a folder without a lock may be of a launcher that has just begun

// A live launcher holds the lock of its folder, whatever container it runs in; process numbers would not tell.
void remove_if_left_behind(const LeftFolder& folder) {
  const int lock = open((folder.path + "/lock").c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (lock < 0 && folder.age < kBeingMade) return;
  std::error_code ignored;
  if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) == 0) fs::remove_all(folder.path, ignored);
  if (lock >= 0) close(lock);
}

}  // namespace

std::vector<LeftFolder> left_folders(const std::string& parent, const std::string& prefix) {
  std::vector<LeftFolder> found;
  std::error_code error;
  for (fs::directory_iterator each(parent, error), end; !error && each != end; each.increment(error)) {
    struct stat info;
    if (each->path().filename().string().rfind(prefix, 0) == 0 && lstat(each->path().c_str(), &info) == 0 &&
        S_ISDIR(info.st_mode) && info.st_uid == geteuid())
      found.push_back({each->path().string(), std::difftime(std::time(nullptr), info.st_mtime)});
  }
  return found;
}

SessionFolder::SessionFolder() {
  const char* own = std::getenv("TMPDIR");
  for (const std::string& base : {std::string("/dev/shm"), std::string(own ? own : ""), std::string("/tmp")}) {
    if (base.empty() || access(base.c_str(), W_OK | X_OK) != 0) continue;
    for (const auto& folder : left_folders(base, kPrefix)) remove_if_left_behind(folder);
    std::string path = base + "/" + kPrefix + "XXXXXX";
    if (!mkdtemp(path.data())) continue;
    lock_ = open((path + "/lock").c_str(), O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
    if (lock_ >= 0 && flock(lock_, LOCK_EX | LOCK_NB) == 0) {
      path_ = path;
      return;
    }
    if (lock_ >= 0) close(lock_);
    lock_ = -1;
    std::error_code ignored;
    fs::remove_all(path, ignored);
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
