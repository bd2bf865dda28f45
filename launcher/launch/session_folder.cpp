#include "launcher/launch/session_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;

const std::string kPrefix = "muster-launch-";
// What Open MPI keeps there: a segment of 4 MiB for each rank, with some air, and the session's files.
constexpr double kForEachRank = 8e6, kForAll = 8e6;
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

SessionFolder::SessionFolder(int ranks) {
  const char* own = std::getenv("TMPDIR");
  const double needed = kForEachRank * ranks + kForAll;
  std::string full;
  for (const std::string& base : {std::string("/dev/shm"), std::string(own ? own : ""), std::string("/tmp")}) {
    if (base.empty() || access(base.c_str(), W_OK | X_OK) != 0) continue;
    for (const auto& folder : left_folders(base, kPrefix)) remove_if_left_behind(folder);
    if (const auto space = free_space(base); space && static_cast<double>(space->free) < needed) {
      full += fmt::format("{}{} has {}", full.empty() ? "" : ", ", base, size_text(static_cast<double>(space->free)));
      continue;
    }
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
  throw Error(
      ExitCode::kIo,
      full.empty()
          ? std::string("launch: no folder for the files of MPI can be made in /dev/shm or /tmp. Set TMPDIR to "
                        "one that you may write to")
          : fmt::format("launch: {} need {} for the memory that they share, and {}. Set TMPDIR to a folder with "
                        "more room, or start the container with a larger /dev/shm (--shm-size)",
                        plural(ranks, "rank"), size_text(needed), full));
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
  // Otherwise mpirun looks for ssh although it has nothing to start elsewhere. In an allocation of one node that may be
  // another machine (salloc on a login node).
  if (!here.environment.count("OMPI_MCA_plm") && !here.slurm) environment.emplace("OMPI_MCA_plm", "isolated");
  // A user whose number has no name, as in some containers, has no home folder, which mpirun asks for.
  if (!here.environment.count("HOME") && !getpwuid(geteuid())) environment.emplace("HOME", "/");
  auto folder = std::make_unique<SessionFolder>(job.ranks);
  for (const auto& [name, value] : folder->environment())
    if (!here.environment.count(name)) environment.emplace(name, value);
  return folder;
}

}  // namespace muster::launcher
