#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <regex>
#include <sstream>

#include "base/text.h"
#include "launcher/doctor/machine.h"
#include "launcher/launch/launch_environment.h"

namespace muster::launcher::doctor {
namespace {

std::string version_in(const std::string& text) {
  std::smatch found;
  return std::regex_search(text, found, std::regex(R"(\d+\.\d+(\.\d+)?)")) ? found[0].str() : "";
}

std::string major_of(const std::string& version) { return version.substr(0, version.find('.')); }

std::string series_of(const std::string& version) {
  return version.substr(0, version.find('.', version.find('.') + 1));
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The lines that matter of what mpirun, ssh and ranks have written to standard error, in one line of some 400
// characters.
std::string summarize_stderr(const std::string& errors) {
  std::vector<std::string> own, others;
  std::istringstream text(errors);
  for (std::string line; std::getline(text, line);) {
    line = trimmed(line);
    if (line.find_first_not_of("-=* ") == std::string::npos) continue;
    if (line.rfind("This usually", 0) == 0 || line.rfind("You can override", 0) == 0) break;  // general advice follows
    if (line.rfind("muster: ", 0) == 0)
      own.push_back(line.substr(8));
    else if (others.size() < 4)
      others.push_back(line);
  }
  const std::string whole = own.empty() ? join(others, " ") : join(own, "; ");
  return whole.size() <= 400 ? whole : whole.substr(0, 397) + "...";
}

// What ssh, mpirun, srun and ranks write, and the fix.
struct Symptom {
  const char* pattern;
  const char* fix;
};
const Symptom kSymptoms[] = {
    {"Could not resolve hostname|Name or service not known|unable to resolve",
     "check the spelling of the hosts; each name must resolve here: getent hosts NAME"},
    {"Permission denied|Host key verification failed|publickey",
     "ssh must reach each host without asking anything: ssh HOST true (ssh-keygen, ssh-copy-id HOST; accept its key "
     "once)"},
    {"Connection refused|Connection timed out|No route to host",
     "the host does not answer: is it up, does sshd run there, does a firewall stand between?"},
    {"not enough slots|not enough.*available",
     "ask for fewer ranks, give hosts more slots (--hosts a:4,b:4), or add --oversubscribe: ranks then take turns"},
    {"run as root|running as root",
     "add --allow-run-as-root (sensible in a container of your own), or run as an ordinary user"},
    {"could not.*(find|access).*executable|No such file or directory|cannot run",
     "muster must be at the same path on every host: install it on a file system that all share"},
    {"error while loading shared libraries|symbol lookup error|undefined symbol",
     "the libraries that muster was built with must be found on every host: load the same modules there, also for "
     "shells without login"},
    {"unable to reliably start|daemons",
     "Open MPI must be installed at the same path on every host, and hosts must reach each other by TCP on any port"},
    {"MPI sees only|sees itself|belongs to another MPI",
     "use the mpirun of the Open MPI that muster was built with; under Slurm srun --mpi=pmix"},
    {"is lost",
     "see what happened to that rank (docs/faults.md): a crash, out of memory (dmesg), or a machine that went away"},
    {"no progress|hangs|did not come|has not come",
     "see what holds that rank up: a file system that hangs, a stopped process, a network that loses packets"},
    {"PMIx|pmix", "use a PMIx that Open MPI and Slurm share (srun --mpi=list)"},
};

}  // namespace

void check_mpirun(const Start& start, Finding& finding) {
  finding.expected = fmt::format("that of {}, which muster has loaded", start.mpi_library);
  if (start.mpirun.empty()) {
    finding.skip("there is no mpirun on the PATH");
    if (start.needs_mpirun)
      finding.fail("install Open MPI (Debian: apt-get install openmpi-bin) or load its module: module load openmpi");
    return;
  }
  const auto answer = start.ask({start.mpirun, "--version"});
  const std::string text = answer.errors + answer.output, line = text.substr(0, text.find('\n'));
  const std::string version = version_in(line), loaded = version_in(start.mpi_library);
  finding.found = fmt::format("{}: {}", start.mpirun, line.empty() ? "no answer" : line);
  finding.figures = {{"path", start.mpirun}, {"version", version}, {"loaded", loaded}};
  const bool same_make = answer.code == 0 && (contains(start.mpi_library, "Open MPI") == contains(text, "Open MPI") ||
                                              contains(text, "OpenRTE"));
  if (same_make && series_of(version) == series_of(loaded)) return;
  finding.fail(
      "put the folder of the right mpirun first in PATH (module load, or export PATH=/opt/openmpi/bin:$PATH): ranks "
      "that another MPI starts each see only themselves");
  if (!start.needs_mpirun || (same_make && major_of(version) == major_of(loaded))) finding.state = State::kWarning;
  if (answer.code != 0) finding.found = fmt::format("{} does not run: {}", start.mpirun, summarize_stderr(text));
}

void check_srun(const Start& start, Finding& finding) {
  if (start.srun.empty()) return finding.skip("no srun on the PATH: not a Slurm machine");
  const auto answer = start.ask({start.srun, "--mpi=list"});
  const std::string text = answer.errors + answer.output;
  finding.found = start.srun + " offers pmix";
  if (srun_mpi(answer).offers("pmix")) return;
  if (answer.code != 0 && !start.needs_srun)
    return finding.skip(fmt::format("{} is here, but Slurm is not set up: {}", start.srun, summarize_stderr(text)));
  finding.found = answer.code == 0 ? fmt::format("{} does not offer pmix, only: {}", start.srun,
                                                 std::regex_replace(text, std::regex("\\s+"), " "))
                                   : fmt::format("{} --mpi=list fails: {}", start.srun, summarize_stderr(text));
  finding.warn(
      "ask the administrator for Slurm's PMIx plugin (Debian: apt-get install libpmix2 with "
      "slurm-wlm-basic-plugins); without it muster launch uses mpirun inside the allocation");
  if (start.needs_srun) finding.state = State::kFailed;
}

Finding explain_end(const ProcessResult& end, bool connected, const std::string& command) {
  Finding finding;
  finding.check = connected ? "ranks_end" : "ranks";
  finding.expected = "all ranks start, connect to each other and end with exit code 0";
  finding.figures = {{"exit_code", end.code}};
  if (end.silent)
    finding.found =
        fmt::format("the ranks {} and were ended", connected ? "stopped answering" : "did not start in time");
  else
    finding.found =
        fmt::format("the ranks {}, exit code {}", connected ? "ended too early" : "did not start", end.code);
  if (const auto said = summarize_stderr(end.errors); !said.empty()) finding.found += ": " + said;
  finding.fail("run it by hand to see everything that it prints: " + command);
  if (end.code == 128 + SIGKILL)
    finding.fix = "a rank was killed, perhaps for lack of memory: dmesg | tail, and the limits of the container or job";
  if (end.code == 128 + SIGBUS) finding.fix = "/dev/shm is too small for MPI: see \"shared_memory\"";
  const auto known = std::find_if(std::begin(kSymptoms), std::end(kSymptoms), [&](const Symptom& symptom) {
    return std::regex_search(end.errors, std::regex(symptom.pattern));
  });
  if (known != std::end(kSymptoms)) finding.fix = known->fix;
  return finding;
}

Finding explain_refusal(const std::string& message) {
  Finding finding;
  finding.check = "ranks";
  finding.expected = "ranks can be started";
  finding.fail("muster doctor takes the same options as muster launch: docs/launching.md");
  // The message says what to type, but for launch.
  finding.found = std::regex_replace(message.substr(message.rfind("launch: ", 0) == 0 ? 8 : 0),
                                     std::regex(R"(muster launch (.*?) doctor \.\.\.)"), "muster doctor $1");
  if (const size_t end = std::min(finding.found.find(". "), finding.found.find("; ")); end != std::string::npos) {
    finding.fix = finding.found.substr(end + 2);
    finding.found = finding.found.substr(0, end);
  }
  return finding;
}

}  // namespace muster::launcher::doctor
