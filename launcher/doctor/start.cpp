#include <fmt/format.h>
#include <mntent.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <regex>
#include <sstream>

#include "base/text.h"
#include "launcher/doctor/machine.h"

namespace muster::launcher::doctor {
namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string major_of(const std::string& version) { return version.substr(0, version.find('.')); }

std::string series_of(const std::string& version) {
  return version.substr(0, version.find('.', version.find('.') + 1));
}

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

void check_mpirun(const Start& start, Finding& finding) {
  const std::string& mpirun = start.here.mpirun;
  const bool needed = !start.alone && !start.here.slurm;
  finding.expected = fmt::format("that of {}, which muster has loaded", start.mpi_library);
  if (mpirun.empty()) {
    finding.skip("there is no mpirun on the PATH");
    if (needed)
      finding.fail("install Open MPI (Debian: apt-get install openmpi-bin) or load its module: module load openmpi");
    return;
  }
  const auto answer = start.ask({mpirun, "--version"});
  const std::string text = answer.errors + answer.output, line = text.substr(0, text.find('\n'));
  const std::string version = version_in(line), loaded = version_in(start.mpi_library);
  finding.figures = {{"path", mpirun}, {"version", version}, {"loaded", loaded}};
  finding.found = fmt::format("{}: {}", mpirun, line.empty() ? "no answer" : line);
  if (answer.code != 0) finding.found = fmt::format("{} does not run: {}", mpirun, summarize_stderr(text));
  const bool same_make = answer.code == 0 && (contains(start.mpi_library, "Open MPI") == contains(text, "Open MPI") ||
                                              contains(text, "OpenRTE"));
  if (same_make && series_of(version) == series_of(loaded)) return;
  finding.fail(
      "put the folder of the right mpirun first in PATH (module load, or export PATH=/opt/openmpi/bin:$PATH): ranks "
      "that another MPI starts each see only themselves");
  if (!needed || (same_make && major_of(version) == major_of(loaded))) finding.state = State::kWarning;
}

void check_srun(const Start& start, Finding& finding) {
  const std::string& srun = start.here.srun;
  const bool needed = !start.alone && start.here.slurm && start.here.mpirun.empty();
  if (srun.empty()) return finding.skip("no srun on the PATH: not a Slurm machine");
  const auto answer = start.ask({srun, "--mpi=list"});
  const std::string text = answer.errors + answer.output;
  finding.found = srun + " offers pmix";
  if (srun_mpi(answer).offers("pmix")) return;
  finding.fail(
      "ask the administrator for Slurm's PMIx plugin (Debian: apt-get install libpmix2 with "
      "slurm-wlm-basic-plugins); without it muster launch uses mpirun inside the allocation");
  if (!needed) finding.state = State::kWarning;
  finding.found =
      fmt::format("{} does not offer pmix, only: {}", srun, std::regex_replace(text, std::regex("\\s+"), " "));
  if (answer.code == 0) return;
  finding.found = fmt::format("{} --mpi=list fails: {}", srun, summarize_stderr(text));
  if (!needed) finding.skip("Slurm is not set up here: " + finding.found), finding.fix.clear();
}

// File systems that are unsuitable for run directories, or may be.
struct FileSystemTrouble {
  const char* type;    // pattern
  const char* option;  // of the mount; "": any
  const char* found;
  const char* fix;
};
const FileSystemTrouble kFileSystemTroubles[] = {
    {"tmpfs|ramfs", "", ": in memory, lost when the machine restarts or, under some schedulers, when the job ends",
     "keep run directories on a disk (--directory tries another place)"},
    {"overlay|aufs", "", ": a container's own layer, which is deleted with the container",
     "keep run directories in a folder of the machine: docker run -v /data:/data, apptainer --bind"},
    {"nfs.*", "soft", ", mounted soft: a server that is slow for a moment becomes an I/O error",
     "ask the administrator to mount it hard (the default)"},
    {"cifs|smb3|9p|fuse.*", "", ": see below whether rename and link do what a run needs",
     "keep run directories on a POSIX file system: a disk, NFS, Lustre, GPFS"},
};

void check_directory(const Start& start, Finding& finding) {
  finding.figures = {{"path", start.directory}};
  if (start.directory_error)
    throw Failure(fmt::format("{}: {}", start.directory, start.directory_error.message()),
                  start.directory_error == std::errc::no_such_file_or_directory
                      ? "make it first (mkdir -p), or name another: --directory DIR"
                      : "name a folder that you may write to, on a file system with room: --directory DIR");
  const auto [type, source, point, options] = mount_of(start.directory, start.mounts);
  finding.found = fmt::format("{} on {}", start.directory, type.empty() ? "an unknown file system" : type);
  finding.figures.update({{"type", type}, {"source", source}, {"mounted_at", point}, {"options", options}});
  for (const auto& trouble : kFileSystemTroubles) {
    if (!std::regex_match(type, std::regex(trouble.type)) ||
        (*trouble.option && !contains("," + options + ",", fmt::format(",{},", trouble.option))))
      continue;
    finding.found += trouble.found;
    return finding.warn(trouble.fix);
  }
  static const std::regex network("nfs4?|lustre|gpfs|beegfs|ceph|panfs|afs|virtiofs|wekafs|pvfs2");
  if (start.several_hosts && !type.empty() && !std::regex_match(type, network))
    finding.found += " (a disk of this machine; \"shared\" below says whether the others see it)";
}

void check_free_space(const Start& start, Finding& finding) {
  const auto room = free_space(start.directory);
  if (!room) return;
  const bool counts = room->inodes > 0;  // btrfs, Lustre clients and others may not count them
  finding.found = size_text(static_cast<double>(room->free)) + " free";
  if (counts) finding.found += fmt::format(", room for {} files", room->free_inodes);
  finding.figures = {{"size_bytes", room->size},
                     {"free_bytes", room->free},
                     {"inodes", room->inodes},
                     {"free_inodes", room->free_inodes}};
  if (room->free >= 1e9 && (!counts || room->free_inodes >= 10000)) return;
  finding.warn("make room (muster checkpoints prune removes old checkpoints), or name another place: --directory DIR");
  if (room->free < 50e6 || (counts && room->free_inodes < 100)) finding.state = State::kFailed;
}

// What ssh, mpirun, srun and ranks write (a pattern), and the fix. The first that is found counts.
const std::pair<const char*, const char*> kSymptoms[] = {
    {"Could not resolve hostname|Name or service not known|unable to resolve",
     "check the spelling of the hosts; each name must resolve here: getent hosts NAME"},
    {"Permission denied|Host key verification failed|publickey",
     "ssh must reach each host without a question: ssh HOST true (ssh-keygen, ssh-copy-id HOST; accept its key once)"},
    {"Connection refused|Connection timed out|No route to host",
     "the host does not answer: is it up, does sshd run there, is there a firewall between?"},
    {"not enough slots|not enough.*available",
     "ask for fewer ranks, give hosts more slots (--hosts a:4,b:4), or let ranks share cores: --oversubscribe"},
    {"run as root|running as root",
     "add --allow-run-as-root (sensible in a container of your own), or run as an ordinary user"},
    {"could not.*(find|access).*executable|No such file or directory|cannot run",
     "muster must be at the same path on every host: install it on a file system that all share"},
    {"error while loading shared libraries|symbol lookup error|undefined symbol",
     "every host must find the libraries that muster was built with: load the same modules, also without a login "
     "shell"},
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

Mount mount_of(const std::string& path, const std::string& mounts) {
  Mount best;
  FILE* lines = fmemopen(const_cast<char*>(mounts.data()), mounts.size(), "r");
  if (!lines) return best;
  mntent mount;
  char text[4096];
  while (getmntent_r(lines, &mount, text, sizeof text)) {
    const std::string point = mount.mnt_dir;
    const bool is_below = point == "/" || (path + "/").rfind(point + "/", 0) == 0;
    // Of two mounts on one place the later one is visible.
    if (is_below && point.size() >= best.point.size()) best = {mount.mnt_type, mount.mnt_fsname, point, mount.mnt_opts};
  }
  std::fclose(lines);
  return best;
}

Finding explain_end(const ProcessResult& end, bool connected, const std::string& command) {
  Finding finding{connected ? "ranks_end" : "ranks", "all ranks start, connect to each other and end with exit code 0"};
  finding.figures = {{"exit_code", end.code}};
  finding.found =
      end.silent
          ? connected ? "the ranks stopped answering and were ended" : "the ranks did not start in time and were ended"
          : fmt::format("the ranks {}, exit code {}", connected ? "ended too early" : "did not start", end.code);
  if (const auto said = summarize_stderr(end.errors); !said.empty()) finding.found += ": " + said;
  finding.fail("run it by hand to see everything that it prints: " + command);
  if (end.code == 128 + SIGKILL)
    finding.fix = "a rank was killed, perhaps for lack of memory: dmesg | tail, and the limits of the container or job";
  if (end.code == 128 + SIGBUS) finding.fix = "/dev/shm is too small for MPI: see \"shared_memory\"";
  const auto known = std::find_if(std::begin(kSymptoms), std::end(kSymptoms), [&](const auto& symptom) {
    return std::regex_search(end.errors, std::regex(symptom.first));
  });
  if (known != std::end(kSymptoms)) finding.fix = known->second;
  return finding;
}

Finding explain_refusal(const std::string& message) {
  Finding finding{"ranks", "ranks can be started"};
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

const std::vector<Check<const Start>> kStartChecks = {
    {"mpirun", "", check_mpirun},
    {"srun", "srun offers pmix", check_srun},
    {"directory", "a folder that can be written to, which outlives the job and which all its machines share",
     check_directory},
    {"free_space", "at least 1 GB and 10000 files", check_free_space},
};

}  // namespace muster::launcher::doctor
