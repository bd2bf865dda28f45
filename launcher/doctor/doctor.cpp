#include "launcher/doctor/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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
using nlohmann::json;

// Keeps all findings, and prints each as it comes or, as_json, all of them at the end.
class Reporter {
 public:
  explicit Reporter(bool as_json) : as_json_(as_json) {}

  // What several ranks of a machine find alike is shown and counted once; --json has each.
  void add(const Finding& finding) {
    if (caught_stops() > 0) return;  // it may be an effect of the stop
    static const json nothing = Finding();
    json fields = finding;
    const std::string state = fields["state"];
    for (const auto& [name, value] : nothing.items())
      if (name != "state" && fields[name] == value) fields.erase(name);
    findings_.push_back(fields);
    // A second rank's ok adds nothing; a warning or failure on another machine does.
    const bool broken = finding.state >= State::kWarning;
    if (!shown_.insert(fmt::format("{}\n{}\n{}", finding.check, state, broken ? finding.host : "")).second) return;
    if (broken) (finding.state == State::kFailed ? failed_ : warnings_).insert(finding.check);
    if (as_json_) return;
    auto text = fmt::format("{:<8} {:<20} {}", finding.state == State::kFailed ? "FAILED" : state, finding.check,
                            finding.found);
    if (broken && finding.rank >= 0) text += fmt::format(" (rank {} on {})", finding.rank, finding.host);
    if (broken && !finding.expected.empty()) text += fmt::format("\n{:30}expected: {}", "", finding.expected);
    if (broken) text += fmt::format("\n{:30}fix: {}", "", finding.fix);
    std::puts(text.c_str());
    std::fflush(stdout);
  }

  bool has_failed(const std::string& check) const { return failed_.count(check) > 0; }

  // Prints the closing line, or the JSON document, which begins as `document`. Returns the exit code.
  int finish(json document) const {
    document.update(
        {{"findings", findings_}, {"ok", failed_.empty()}, {"warnings", warnings_.size()}, {"failed", failed_.size()}});
    const auto text = as_json_
                          ? document.dump(2, ' ', false, json::error_handler_t::replace)
                          : fmt::format("\n{}, {}, {} failed", plural(static_cast<int64_t>(shown_.size()), "check"),
                                        plural(static_cast<int64_t>(warnings_.size()), "warning"), failed_.size());
    std::puts(text.c_str());
    return failed_.empty() ? 0 : 1;
  }

 private:
  bool as_json_;
  json findings_ = json::array();
  std::set<std::string> shown_;
  std::multiset<std::string> warnings_, failed_;  // checks
};

// A folder for trying files in. It is removed with this object, as are those of doctors that were killed long ago.
class TrialFolder {
 public:
  explicit TrialFolder(const std::string& directory) : path(directory + "/" + kPrefix + "XXXXXX") {
    for (const auto& left : left_folders(directory, kPrefix))
      if (left.age > kLongAgo) fs::remove_all(left.path, error);
    error = mkdtemp(path.data()) ? std::error_code() : std::error_code(errno, std::generic_category());
    if (error) path.clear();
  }
  ~TrialFolder() {
    if (!path.empty()) fs::remove_all(path, error);
  }
  TrialFolder(const TrialFolder&) = delete;
  TrialFolder& operator=(const TrialFolder&) = delete;

  std::string path;       // empty: it could not be made
  std::error_code error;  // why

 private:
  static constexpr const char* kPrefix = ".muster-doctor-";
  static constexpr double kLongAgo = 3600;  // seconds; no doctor runs so long
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
    if (message.contains("finding")) return reporter.add(message["finding"]);
    if (message.contains("done")) done = true;
    if (!message.contains("ranks")) return;
    connected = true;
    Finding finding{"ranks", "", "1 rank, without MPI"};
    finding.figures = message;
    if (message["ranks"] != 1)
      finding.found =
          fmt::format("{} ranks on {} see each other", message["ranks"].get<int>(), plural(message["hosts"], "host"));
    reporter.add(finding);
  };
  const auto end = run(command.arguments, options);
  if (end.code != 0 || !done) reporter.add(explain_end(end, connected, line));
}

}  // namespace

int examine(const DoctorOptions& options) {
  if (const int ranks = distributed::expected_world_size(); ranks != 1)
    throw Error(ExitCode::kUsage, fmt::format("doctor starts its ranks itself, but here it is one of {0} processes. "
                                              "Run it once: muster doctor -n {0} (inside a Slurm allocation it uses "
                                              "srun)",
                                              ranks));
  JobRequest request = options.job;
  std::vector<HostSlots> hosts;
  if (!request.hosts.empty()) hosts = parse_hosts(request.hosts);
  if (!request.hostfile.empty()) hosts = read_hostfile(request.hostfile);
  std::signal(SIGPIPE, SIG_DFL);  // main() ignores it, but here it ends the work: nobody reads the findings any more
  catch_stops({SIGINT, SIGTERM, SIGHUP, SIGPIPE});
  Reporter reporter(options.json);
  Start start;
  const LaunchEnvironment& here = start.here = detect_launch_environment();
  // On one machine two ranks show most of what can be wrong between ranks.
  if (request.ranks == 0 && hosts.empty() && !here.slurm)
    request.ranks = here.gpus > 1 ? here.gpus : std::min(2, here.cpus);
  start.alone = request.ranks == 1 && hosts.empty();
  start.several_hosts = hosts.size() > 1 || (here.slurm && here.slurm->nodes > 1);
  const Machine machine = detect_machine(start.several_hosts);
  run_checks(kMachineChecks, machine, [&](Finding finding) {
    finding.host = machine.host;
    reporter.add(finding);
  });

  start.mpi_library = distributed::mpi_library_version();
  const auto canonical = fs::canonical(options.directory, start.directory_error);
  start.directory = start.directory_error ? options.directory : canonical.string();
  const TrialFolder folder(start.directory);
  start.directory_error = folder.error;
  start.mounts = read_file_if_there("/proc/self/mounts", 64 << 20).value_or("");
  start.ask = [](const std::vector<std::string>& command) {
    ProcessOptions limits;
    limits.time_limit = 10;
    return run(command, limits);
  };
  run_checks<const Start>(kStartChecks, start, [&](const Finding& finding) { reporter.add(finding); });

  json document = {{"directory", start.directory}};
  request.command = {"doctor", "--directory", folder.path, "--timeout", fmt::to_string(options.timeout), "--as-rank",
                     "1"};
  request.label_output = false;  // rank 0 alone writes, and its lines are too long for labels
  try {
    JobCommand command;
    std::string line = "muster doctor -n 1";
    std::unique_ptr<SessionFolder> session;
    if (start.alone) {
      command.arguments = request.command;
      command.arguments.insert(command.arguments.begin(), here.program);
    } else {
      command = job_command(request, here);
      command.arguments.back() = fmt::to_string(command.ranks);  // not known before
      line = shell_line(command);
      session = session_folder_for(command, here, command.environment);
    }
    document.update({{"ranks", command.ranks}, {"command", line}});
    // Another MPI's mpirun would start ranks that know nothing of each other, all writing the same files.
    if (caught_stops() == 0 && (start.alone || !reporter.has_failed("mpirun")))
      run_ranks(command, line, options.timeout, reporter);
  } catch (const Error& refusal) {
    if (refusal.code() != ExitCode::kUsage && refusal.code() != ExitCode::kIo) throw;
    reporter.add(explain_refusal(refusal.what()));
  }
  return caught_stops() > 0 ? 130 : reporter.finish(document);  // 130: as shells report an interrupt
}

}  // namespace muster::launcher::doctor
