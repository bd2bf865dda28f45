#include "launcher/doctor/doctor.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>

#include "distributed/communicator.h"
#include "distributed/cuda_devices.h"
#include "distributed/nccl.h"
#include "launcher/doctor/files.h"
#include "launcher/doctor/gpu.h"
#include "launcher/doctor/launch_backends.h"
#include "launcher/doctor/libraries.h"
#include "launcher/doctor/limits.h"
#include "launcher/doctor/machine.h"
#include "launcher/doctor/process.h"
#include "launcher/doctor/ranks.h"
#include "launcher/doctor/report.h"
#include "launcher/launch/job_command.h"
#include "launcher/launch/session_folder.h"

namespace muster::launcher::doctor {
namespace {

namespace fs = std::filesystem;

const std::string kPrefix = ".muster-doctor-";
constexpr int kInterrupted = 130;  // as shells say it
constexpr time_t kLongAgo = 3600;  // a doctor's visit never takes so long

void refuse_to_be_a_rank() {
  if (const std::string ranks = std::to_string(distributed::expected_world_size()); ranks != "1")
    throw Error(ExitCode::kUsage, "doctor starts its ranks itself, but here it is one of " + ranks +
                                      " processes. Run it once: muster doctor -n " + ranks +
                                      " (inside a Slurm allocation it uses srun)");
}

// A folder for trying files in, which goes when this object does.
class Folder {
 public:
  // Throws std::runtime_error.
  explicit Folder(const std::string& directory) {
    std::error_code error;
    std::vector<fs::path> old;
    for (auto each = fs::directory_iterator(directory, error); !error && each != fs::directory_iterator();
         each.increment(error)) {
      struct stat info;
      if (each->path().filename().string().rfind(kPrefix, 0) == 0 && lstat(each->path().c_str(), &info) == 0 &&
          S_ISDIR(info.st_mode) && info.st_uid == geteuid() && std::time(nullptr) - info.st_mtime > kLongAgo)
        old.push_back(each->path());
    }
    for (const auto& path : old) fs::remove_all(path, error);
    std::string path = directory + "/" + kPrefix + "XXXXXX";
    if (!mkdtemp(path.data())) throw std::runtime_error(std::strerror(errno));
    path_ = path;
  }
  ~Folder() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// On one machine two ranks show most of what can be wrong between ranks.
int ranks_of(const DoctorOptions& options, const LaunchEnvironment& here) {
  if (options.job.ranks > 0 || !options.job.hosts.empty() || !options.job.hostfile.empty() || here.slurm)
    return options.job.ranks;
  return here.gpus > 1 ? here.gpus : std::min(2, here.cpus);
}

Finding unusable(const std::string& directory, int error_number, const std::string& what) {
  Finding finding{"directory", State::kFailed,       directory + ": " + what, "a folder that can be written to", "", "",
                  -1,          {{"path", directory}}};
  finding.fix = error_number == ENOENT
                    ? "make it first (mkdir -p), or name another: --directory DIR"
                    : "name a folder that you may write to, on a file system with room: --directory DIR";
  return finding;
}

struct Start {
  std::vector<std::string> words, removed;
  std::map<std::string, std::string> environment;
  std::string line;
  int ranks = 1;
};

// False when this process was asked to stop meanwhile.
bool follow(const Start& start, double timeout, Reporter& reporter) {
  bool met = false, done = false;
  const auto take = [&](const std::string& line) {
    const auto said = parse_line(line);
    if (!said.is_object()) return;
    if (said.contains("finding")) return reporter.add(finding_of(said["finding"]));
    if (said.contains("done")) done = true;
    if (!said.contains("ranks")) return;
    met = true;
    const int ranks = said["ranks"], hosts = said["hosts"];
    Finding finding{"ranks", State::kOk, "", "", "", "", -1, {{"ranks", ranks}, {"hosts", hosts}}};
    finding.found = ranks == 1 ? "1 rank, without MPI"
                               : std::to_string(ranks) + " ranks on " + std::to_string(hosts) +
                                     (hosts == 1 ? " host" : " hosts") + " see each other";
    reporter.add(finding);
  };
  // Ranks that are up give up on each other first, and say who is missing.
  const auto end = run_process(start.words, 1.25 * timeout + 5, take, start.environment, start.removed);
  if (end.interrupted) return false;
  if (end.code != 0 || !done) reporter.add(explain_end(end, met, start.line));
  return true;
}

}  // namespace

int examine(const DoctorOptions& options) {
  refuse_to_be_a_rank();
  if (!options.job.hosts.empty()) parse_hosts(options.job.hosts);
  if (!options.job.hostfile.empty()) read_hostfile(options.job.hostfile);
  heed_stops();
  Reporter reporter(options.json);
  const LaunchEnvironment here = detect_launch_environment();
  const Machine machine = detect_machine();
  const bool several_hosts = options.job.hosts.find(',') != std::string::npos || !options.job.hostfile.empty() ||
                             (here.slurm && here.slurm->nodes > 1);
  for (const auto& finding : check_libraries(machine, versions_here())) reporter.add(finding);
  for (const auto& finding : check_limits(machine, several_hosts)) reporter.add(finding);
  for (const auto& finding : check_gpus(machine, !distributed::nccl_version().empty(), distributed::visible_gpus()))
    reporter.add(finding);

  const int ranks = ranks_of(options, here);
  const bool alone = ranks == 1 && options.job.hosts.empty() && options.job.hostfile.empty();
  const Finding mpirun = check_mpirun(here.mpirun, distributed::mpi_library_version(), !alone && !here.slurm, ask);
  if (is_stopped()) return kInterrupted;
  reporter.add(mpirun);
  const Finding srun = check_srun(here.srun, !alone && here.slurm && here.mpirun.empty(), ask);
  if (is_stopped()) return kInterrupted;
  reporter.add(srun);

  std::error_code error;
  const auto found = fs::canonical(options.directory, error);
  const std::string directory = error ? options.directory : found.string();
  std::unique_ptr<Folder> folder;
  if (error) {
    reporter.add(unusable(directory, error.value(), error.message()));
  } else {
    for (const auto& finding : check_directory(directory, mount_of(directory, machine.mounts), several_hosts))
      reporter.add(finding);
    try {
      folder = std::make_unique<Folder>(directory);
    } catch (const std::exception& failure) {
      reporter.add(unusable(directory, 0, failure.what()));
    }
  }

  nlohmann::json job = {{"directory", directory}};
  Start start;
  std::unique_ptr<SessionFolder> session;
  std::vector<std::string> command{
      "doctor", "--directory", folder ? folder->path() : "", "--timeout", std::to_string(options.timeout), "--as-rank"};
  try {
    if (alone) {
      command.push_back("1");
      start.words = command;
      start.words.insert(start.words.begin(), here.program);
      start.line = "muster doctor -n 1";
    } else {
      JobRequest request = options.job;
      request.ranks = ranks;
      request.label_output = false;  // rank 0 alone speaks, in lines that are longer than marks leave whole
      request.command = command;
      request.command.push_back("");  // how many there are, which is known only then
      JobCommand started = job_command(request, here);
      started.arguments.back() = std::to_string(started.ranks);
      start = {started.arguments, started.removed, started.environment, shell_line(started), started.ranks};
      session = session_folder_for(started, here, start.environment);
    }
    job["ranks"] = start.ranks;
    job["command"] = start.line;
    // Another MPI's mpirun would start ranks that know nothing of each other, all writing the same files.
    if ((alone || mpirun.state != State::kFailed) && !follow(start, options.timeout, reporter)) return kInterrupted;
  } catch (const Error& refusal) {
    if (refusal.code() != ExitCode::kUsage) throw;
    reporter.add(explain_refusal(refusal.what()));
  }
  return reporter.finish(job) > 0 ? 1 : 0;
}

}  // namespace muster::launcher::doctor
