#include "launcher/doctor/doctor.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <memory>
#include <set>

#include "base/text.h"
#include "distributed/communicator.h"
#include "launcher/doctor/machine.h"
#include "launcher/doctor/ranks.h"
#include "launcher/launch/session_folder.h"

namespace muster::launcher::doctor {
namespace {

namespace fs = std::filesystem;

const std::string kPrefix = ".muster-doctor-";
constexpr time_t kLongAgo = 3600;  // no doctor runs so long

// Keeps all findings, and prints each as it comes or, as_json, all of them at the end.
class Reporter {
 public:
  explicit Reporter(bool as_json) : as_json_(as_json) {}

  // What several ranks of a machine find alike is shown once; --json has each.
  void add(const Finding& finding) {
    if (caught_stops() > 0) return;  // it may be an effect of the stop
    findings_.push_back(finding);
    const bool broken = finding.state == State::kWarning || finding.state == State::kFailed;
    // A second rank's ok adds nothing; a warning or failure on another machine does.
    const auto key = fmt::format("{}\n{}\n{}", finding.check, name_of(finding.state),
                                 broken ? finding.host + "\n" + finding.expected : "");
    if (!shown_.insert(key).second || as_json_) return;
    auto text = fmt::format("{:<8} {:<20} {}", finding.state == State::kFailed ? "FAILED" : name_of(finding.state),
                            finding.check, finding.found);
    if (broken && finding.rank >= 0) text += fmt::format(" (rank {} on {})", finding.rank, finding.host);
    if (broken && !finding.expected.empty()) text += fmt::format("\n{:30}expected: {}", "", finding.expected);
    if (broken && !finding.fix.empty()) text += fmt::format("\n{:30}fix: {}", "", finding.fix);
    std::puts(text.c_str());
    std::fflush(stdout);
  }

  bool has_failed(const std::string& check) const {
    return std::any_of(findings_.begin(), findings_.end(), [&](const Finding& finding) {
      return finding.check == check && finding.state == State::kFailed;
    });
  }

  // Prints the closing line, or the JSON document, which begins as `document`. Returns the exit code.
  int finish(nlohmann::json document) const {
    std::set<std::string> checks;
    int64_t warnings = 0, failed = 0;
    document["findings"] = nlohmann::json::array();
    for (const auto& finding : findings_) {
      document["findings"].push_back(to_json(finding));
      if (!checks.insert(finding.check + "\n" + finding.host + name_of(finding.state)).second) continue;
      warnings += finding.state == State::kWarning;
      failed += finding.state == State::kFailed;
    }
    document.update({{"ok", failed == 0}, {"warnings", warnings}, {"failed", failed}});
    const auto text = as_json_
                          ? document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace)
                          : fmt::format("\n{}, {}, {} failed", plural(static_cast<int64_t>(checks.size()), "check"),
                                        plural(warnings, "warning"), failed);
    std::puts(text.c_str());
    return failed > 0 ? 1 : 0;
  }

 private:
  bool as_json_;
  std::vector<Finding> findings_;
  std::set<std::string> shown_;
};

// A folder for trying files in. It is removed with this object, as are those of doctors that were killed long ago.
class TrialFolder {
 public:
  // Throws Failure.
  explicit TrialFolder(const std::string& directory) : path_(directory + "/" + kPrefix + "XXXXXX") {
    std::error_code error;
    std::vector<fs::path> old;
    for (fs::directory_iterator each(directory, error), end; !error && each != end; each.increment(error)) {
      struct stat info;
      if (each->path().filename().string().rfind(kPrefix, 0) == 0 && lstat(each->path().c_str(), &info) == 0 &&
          S_ISDIR(info.st_mode) && info.st_uid == geteuid() && std::time(nullptr) - info.st_mtime > kLongAgo)
        old.push_back(each->path());
    }
    for (const auto& path : old) fs::remove_all(path, error);
    if (!mkdtemp(path_.data())) throw unusable_directory(directory, {errno, std::generic_category()});
  }
  ~TrialFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TrialFolder(const TrialFolder&) = delete;
  TrialFolder& operator=(const TrialFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Runs a program until it ends or this process is asked to stop, and leaves no processes behind.
ProcessResult run(const std::vector<std::string>& command, ProcessOptions options) {
  options.own_group = true;  // Ctrl-C reaches it through this process only
  options.death_signal = SIGTERM;
  options.capture_limit = 64 << 10;
  options.on_stop = ProcessOptions::OnStop::kEnd;
  options.ends_orphans = true;
  auto result = run_process(command, options);
  if (result.start_error)
    result.errors = fmt::format("cannot run {}: {}", command[0], std::strerror(result.start_error));
  return result;
}

// Runs the ranks, and reports what they find. `line`: the command as a person would type it.
void run_ranks(const JobCommand& command, const std::string& line, double timeout, Reporter& reporter) {
  bool connected = false, done = false;
  ProcessOptions options;
  options.environment = command.environment;
  options.removed = command.removed;
  options.silence_limit = 1.25 * timeout + 5;  // ranks that are up give up on each other first, and say who is missing
  options.on_line = [&](const std::string& text) {
    const auto message = parse_line(text);
    if (!message.is_object()) return;
    if (message.contains("finding")) return reporter.add(finding_of(message["finding"]));
    if (message.contains("done")) done = true;
    if (!message.contains("ranks")) return;
    connected = true;
    Finding finding;
    finding.check = "ranks";
    finding.figures = message;
    finding.found = message["ranks"] == 1 ? "1 rank, without MPI"
                                          : fmt::format("{} ranks on {} see each other", message["ranks"].get<int>(),
                                                        plural(message["hosts"], "host"));
    reporter.add(finding);
  };
  const auto end = run(command.arguments, options);
  if (end.code != 0 || !done) reporter.add(explain_end(end, connected, line));
}

// On one machine two ranks show most of what can be wrong between ranks.
int default_ranks(const DoctorOptions& options, const LaunchEnvironment& here) {
  if (options.job.ranks > 0 || !options.job.hosts.empty() || !options.job.hostfile.empty() || here.slurm)
    return options.job.ranks;
  return here.gpus > 1 ? here.gpus : std::min(2, here.cpus);
}

}  // namespace

int examine(const DoctorOptions& options) {
  if (const int ranks = distributed::expected_world_size(); ranks != 1)
    throw Error(ExitCode::kUsage, fmt::format("doctor starts its ranks itself, but here it is one of {0} processes. "
                                              "Run it once: muster doctor -n {0} (inside a Slurm allocation it uses "
                                              "srun)",
                                              ranks));
  if (!options.job.hosts.empty()) parse_hosts(options.job.hosts);
  if (!options.job.hostfile.empty()) read_hostfile(options.job.hostfile);
  catch_stops({SIGINT, SIGTERM, SIGHUP, SIGPIPE});  // SIGPIPE: nobody reads the findings any more
  Reporter reporter(options.json);
  const LaunchEnvironment here = detect_launch_environment();
  JobRequest request = options.job;
  request.ranks = default_ranks(options, here);
  const bool alone = request.ranks == 1 && request.hosts.empty() && request.hostfile.empty();
  Start start;
  start.machine = detect_machine(request.hosts.find(',') != std::string::npos || !request.hostfile.empty() ||
                                 (here.slurm && here.slurm->nodes > 1));
  run_checks<const Machine>(kMachineChecks, start.machine, [&](Finding finding) {
    finding.host = start.machine.host;
    reporter.add(finding);
  });

  start.mpirun = here.mpirun;
  start.srun = here.srun;
  start.needs_mpirun = !alone && !here.slurm;
  start.needs_srun = !alone && here.slurm && here.mpirun.empty();
  start.mpi_library = distributed::mpi_library_version();
  start.ask = [](const std::vector<std::string>& command) {
    ProcessOptions limits;
    limits.time_limit = 10;
    return run(command, limits);
  };
  const auto found = fs::canonical(options.directory, start.directory_error);
  start.directory = start.directory_error ? options.directory : found.string();
  run_checks<const Start>(kStartChecks, start, [&](const Finding& finding) { reporter.add(finding); });
  std::unique_ptr<TrialFolder> folder;
  const auto made = run_check("directory", "a folder that can be written to", [&](Finding& finding) {
    finding.figures = {{"path", start.directory}};
    if (!start.directory_error) folder = std::make_unique<TrialFolder>(start.directory);
  });
  if (made.state == State::kFailed) reporter.add(made);

  nlohmann::json document = {{"directory", start.directory}};
  request.command = {
      "doctor", "--directory", folder ? folder->path() : "", "--timeout", fmt::to_string(options.timeout), "--as-rank",
      "1"};
  request.label_output = false;  // rank 0 alone writes, and its lines are too long for labels
  try {
    JobCommand command;
    std::unique_ptr<SessionFolder> session;
    if (alone) {
      command.arguments = request.command;
      command.arguments.insert(command.arguments.begin(), here.program);
    } else {
      command = job_command(request, here);
      command.arguments.back() = std::to_string(command.ranks);  // not known before
    }
    const auto line = alone ? "muster doctor -n 1" : shell_line(command);
    if (!alone) session = session_folder_for(command, here, command.environment);
    document.update({{"ranks", command.ranks}, {"command", line}});
    // Another MPI's mpirun would start ranks that know nothing of each other, all writing the same files.
    if (caught_stops() == 0 && (alone || !reporter.has_failed("mpirun")))
      run_ranks(command, line, options.timeout, reporter);
  } catch (const Error& refusal) {
    if (refusal.code() != ExitCode::kUsage) throw;
    reporter.add(explain_refusal(refusal.what()));
  }
  return caught_stops() > 0 ? 130 : reporter.finish(document);  // 130: as shells report an interrupt
}

}  // namespace muster::launcher::doctor
