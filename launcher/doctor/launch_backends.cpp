#include "launcher/doctor/launch_backends.h"

#include <algorithm>
#include <csignal>
#include <regex>

#include "launcher/launch/launch_environment.h"

namespace muster::launcher::doctor {
namespace {

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string version_in(const std::string& text) {
  std::smatch found;
  return std::regex_search(text, found, std::regex(R"(\d+\.\d+(\.\d+)?)")) ? found[0].str() : "";
}

std::string series(const std::string& version) { return version.substr(0, version.find('.', version.find('.') + 1)); }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// What a person reads in the output of ssh, mpirun and srun, and what helps.
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

Finding check_mpirun(const std::string& path, const std::string& mpi_library, bool needed, const Ask& ask) {
  Finding finding{"mpirun", State::kOk, "", "that of " + mpi_library + ", which muster has loaded", "", "", -1, {}};
  const State broken = needed ? State::kFailed : State::kWarning;
  if (path.empty()) {
    finding.state = needed ? State::kFailed : State::kSkipped;
    finding.found = "there is no mpirun on the PATH";
    if (needed)
      finding.fix = "install Open MPI (Debian: apt-get install openmpi-bin) or load its module: module load openmpi";
    return finding;
  }
  const Answer answer = ask({path, "--version"});
  const std::string line = first_line(answer.text), version = version_in(line), loaded = version_in(mpi_library);
  finding.found = path + ": " + (line.empty() ? "no answer" : line);
  finding.figures = {{"path", path}, {"version", version}, {"loaded", loaded}};
  const bool same_make =
      contains(mpi_library, "Open MPI") == contains(answer.text, "Open MPI") || contains(answer.text, "OpenRTE");
  if (answer.code == 0 && same_make && series(version) == series(loaded)) return finding;
  finding.state =
      answer.code == 0 && same_make && version.substr(0, version.find('.')) == loaded.substr(0, loaded.find('.'))
          ? State::kWarning
          : broken;
  if (answer.code != 0) finding.found = path + " does not run: " + summarize_stderr(answer.text);
  finding.fix =
      "put the folder of the right mpirun first in PATH (module load, or export PATH=/opt/openmpi/bin:$PATH): ranks "
      "that another MPI starts each see "
      "themselves alone";
  return finding;
}

Finding check_srun(const std::string& path, bool needed, const Ask& ask) {
  Finding finding{"srun", State::kSkipped, "no srun on the PATH: not a Slurm machine", "srun offers pmix", "", "", -1,
                  {}};
  if (path.empty()) return finding;
  const Answer answer = ask({path, "--mpi=list"});
  if (SrunMpi{answer.code, answer.text}.offers("pmix")) {
    finding.state = State::kOk;
    finding.found = path + " offers pmix";
    return finding;
  }
  if (answer.code != 0 && !needed) {
    finding.found = path + " is here, but Slurm is not set up: " + summarize_stderr(answer.text);
    return finding;
  }
  finding.state = needed ? State::kFailed : State::kWarning;
  std::string text = answer.text;
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '\n' || c == '\t'; }, ' ');
  finding.found = answer.code == 0 ? path + " does not offer pmix, only: " + text
                                   : path + " --mpi=list fails: " + summarize_stderr(answer.text);
  finding.fix =
      "ask the administrator for Slurm's PMIx plugin (Debian: apt-get install libpmix2 with slurm-wlm-basic-plugins); "
      "without it muster "
      "launch takes mpirun inside the allocation";
  return finding;
}

Finding explain_end(const ProcessEnd& end, bool met, const std::string& command) {
  Finding finding{met ? "ranks_end" : "ranks",
                  State::kFailed,
                  "",
                  "all ranks start, see each other and end with exit code 0",
                  "",
                  "",
                  -1,
                  {{"exit_code", end.code}}};
  const std::string said = summarize_stderr(end.errors);
  if (end.silent)
    finding.found =
        std::string("the ranks ") + (met ? "stopped answering" : "did not start in time") + " and were ended";
  else if (met)
    finding.found = "the ranks ended too early, exit code " + std::to_string(end.code);
  else
    finding.found = "the ranks did not start, exit code " + std::to_string(end.code);
  if (!said.empty()) finding.found += ": " + said;
  for (const auto& symptom : kSymptoms)
    if (finding.fix.empty() && std::regex_search(end.errors, std::regex(symptom.pattern))) finding.fix = symptom.fix;
  if (finding.fix.empty() && end.code == 128 + SIGKILL)
    finding.fix = "a rank was killed, perhaps for lack of memory: dmesg | tail, and the limits of the container or job";
  if (finding.fix.empty() && end.code == 128 + SIGBUS)
    finding.fix = "/dev/shm is too small for MPI: see \"shared_memory\"";
  if (finding.fix.empty()) finding.fix = "run it by hand to see all that is said: " + command;
  return finding;
}

Finding explain_refusal(const std::string& message) {
  Finding finding{"ranks", State::kFailed, message, "ranks can be started", "", "", -1, {}};
  if (message.rfind("launch: ", 0) == 0) finding.found = message.substr(8);
  // It shows what to type, of launch.
  finding.found =
      std::regex_replace(finding.found, std::regex(R"(muster launch (.*?) doctor \.\.\.)"), "muster doctor $1");
  const size_t end = std::min(finding.found.find(". "), finding.found.find("; "));
  if (end != std::string::npos) {
    finding.fix = finding.found.substr(end + 2);
    finding.found = finding.found.substr(0, end);
  }
  if (finding.fix.empty()) finding.fix = "muster doctor takes the same options as muster launch: docs/launching.md";
  return finding;
}

}  // namespace muster::launcher::doctor
