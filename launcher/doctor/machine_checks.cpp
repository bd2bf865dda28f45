#include <fmt/format.h>
#include <mntent.h>

#include <algorithm>
#include <cstdio>
#include <regex>
#include <set>
#include <sstream>

#include "base/text.h"
#include "launcher/doctor/machine.h"

namespace muster::launcher::doctor {
namespace {

// Libraries of which a process must have only one, and why. A file belongs to a family by its name, whatever hash or
// version a packager has added.
struct LibraryFamily {
  const char* name;
  const char* pattern;  // of the name, before a hash and .so
  State state;          // when there are two
  const char* why;
};
const LibraryFamily kFamilies[] = {
    {"MPI", R"(libmpi)", State::kFailed, "each would start a job of its own"},
    {"NCCL", R"(libnccl)", State::kFailed, "each keeps its own communicators"},
    {"protobuf", R"(libprotobuf)", State::kFailed, "messages of one crash in the other"},
    {"CUDA runtime", R"(libcudart)", State::kFailed, "each keeps its own streams"},
    {"HDF5", R"(libhdf5(_serial|_openmpi|_mpich)?)", State::kFailed, "files opened by one are unknown to the other"},
    {"C++ runtime", R"(libstdc\+\+)", State::kFailed, "exceptions thrown through one are not caught in the other"},
    {"LibTorch", "libtorch_cpu", State::kFailed, "tensors of one are unknown to the other"},
    {"hwloc", R"(libhwloc)", State::kWarning, "MPI and the scheduler may disagree about cores"},
    {"PMIx", R"(libpmix)", State::kWarning, "MPI and the scheduler may not understand each other"},
    {"OpenMP", R"(lib(gomp|iomp5|omp))", State::kWarning, "each starts its own threads, on the same cores"},
};

bool has_name(const std::string& path, const std::string& pattern) {
  return std::regex_match(path.substr(path.rfind('/') + 1), std::regex(pattern));
}

void check_versions(const Machine& machine, Finding& finding) {
  std::vector<std::string> list;
  for (const auto& each : machine.versions) {
    list.push_back(each.library + " " + each.loaded);
    finding.figures[each.library] = each.loaded;
  }
  finding.found = join(list, ", ");
}

// "Open MPI v4.1.4, package: ..." -> {"Open MPI", "4.1"}
std::pair<std::string, std::string> make_and_series(const std::string& version) {
  std::smatch found;
  if (!std::regex_search(version, found, std::regex(R"(^\s*([A-Za-z ]+?)\s*(?:Version:?)?\s*v?(\d+\.\d+))")))
    return {version, ""};
  return {found[1], found[2]};
}

void check_built_with(const Machine& machine, Finding& finding) {
  std::vector<std::string> same, different;
  for (const auto& each : machine.versions) {
    if (each.built_with.empty()) continue;
    const auto built = make_and_series(each.built_with), loaded = make_and_series(each.loaded);
    if (built == loaded) {
      same.push_back(each.library);
      continue;
    }
    different.push_back(
        fmt::format("{}: built with {}, but this process has loaded {}", each.library, each.built_with, each.loaded));
    // Minor versions of one MPI understand each other; two makes of MPI do not.
    finding.state = std::max(finding.state, built.first == loaded.first ? State::kWarning : State::kFailed);
  }
  finding.found =
      different.empty() ? fmt::format("the same {} as at run time", join(same, ", ")) : join(different, "; ");
  if (!different.empty())
    finding.fix =
        "load the modules (or activate the environment) that muster was built under, or build it again (./setup.sh)";
}

void check_duplicates(const Machine& machine, Finding& finding) {
  std::vector<std::string> names, duplicates;
  for (const auto& family : kFamilies) {
    names.push_back(family.name);
    std::vector<std::string> paths;
    for (const auto& path : machine.libraries)
      if (has_name(path, family.pattern + std::string(R"((-[0-9a-f]+)?\.so.*)"))) paths.push_back(path);
    if (!paths.empty()) finding.figures[family.name] = paths.size();
    if (paths.size() < 2) continue;
    duplicates.push_back(fmt::format("{} {} libraries: {} ({})",
                                     paths.size() == 2 ? "two" : std::to_string(paths.size()), family.name,
                                     join(paths, " and "), family.why));
    finding.state = std::max(finding.state, family.state);
  }
  finding.expected = "one file of each of " + join(names, ", ");
  finding.found = duplicates.empty() ? "none" : join(duplicates, "; ");
  if (!duplicates.empty())
    finding.fix =
        "find out which of LD_PRELOAD, LD_LIBRARY_PATH and the loaded modules brings in the second one (LD_DEBUG=libs "
        "muster --version shows who loads what), and remove it";
}

void check_preload(const Machine& machine, Finding& finding) {
  const std::string preloaded = machine.variable("LD_PRELOAD");
  finding.found = preloaded.empty() ? "LD_PRELOAD is not set" : "LD_PRELOAD=" + preloaded;
  std::istringstream paths(std::regex_replace(preloaded, std::regex(":"), " "));
  for (std::string path; paths >> path;)
    if (!has_name(path, "lib(tcmalloc|jemalloc|mimalloc).*"))
      finding.warn("unset LD_PRELOAD: what it names replaces functions of every program, including mpirun and ssh");
}

// Modules of a cluster set LD_LIBRARY_PATH, usually for MPI. Libraries that the build has fixed paths for must not
// come from there.
void check_library_path(const Machine& machine, Finding& finding) {
  const std::string folders = machine.variable("LD_LIBRARY_PATH");
  finding.found = folders.empty() ? "LD_LIBRARY_PATH is not set" : "LD_LIBRARY_PATH replaces nothing that matters";
  std::vector<std::string> replaced;
  std::istringstream parts(folders);
  for (std::string folder; std::getline(parts, folder, ':');) {
    while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
    for (const auto& path : machine.libraries)
      if (!folder.empty() && path.substr(0, path.rfind('/')) == folder &&
          has_name(path, R"(lib(torch|c10|cudart|nccl|protobuf|hdf5|stdc\+\+|gomp).*)"))
        replaced.push_back(path);
  }
  if (replaced.empty()) return;
  finding.found = "LD_LIBRARY_PATH puts these in place of others: " + join(replaced, ", ");
  finding.warn(
      "take these folders out of LD_LIBRARY_PATH (or unload the modules that add them), or rebuild muster with them");
}

constexpr int64_t kMega = 1000000;

// A limit of this process, named like the check; `option` of ulimit changes it.
template <char option, int64_t fail_below, int64_t warn_below, bool in_bytes = false>
void check_limit(const Machine& machine, Finding& finding) {
  const Limit limit = machine.limits.at(finding.check);
  finding.found = limit.soft < 0 ? "unlimited" : in_bytes ? size_text(limit.soft) : fmt::to_string(limit.soft);
  finding.figures = {{"soft", limit.soft}, {"hard", limit.hard}};
  if (limit.soft < 0 || limit.soft >= warn_below) return;
  finding.state = limit.soft < fail_below ? State::kFailed : State::kWarning;
  finding.fix = limit.hard < 0 || limit.hard >= warn_below
                    ? fmt::format("ulimit -S -{} {}, before muster and in the job's script too", option,
                                  limit.hard < 0 ? "unlimited" : "hard")
                    : "ask the administrator to raise the hard limit (/etc/security/limits.conf, or LimitNOFILE and "
                      "the like of slurmd's service)";
}

void check_locked_memory(const Machine& machine, Finding& finding) {
  const Limit limit = machine.limits.at("locked_memory");
  finding.found = limit.soft < 0 ? "unlimited" : size_text(limit.soft);
  finding.figures = {{"soft", limit.soft}, {"hard", limit.hard}, {"infiniband", machine.has_infiniband}};
  if (machine.has_infiniband) finding.expected = "unlimited: this machine has InfiniBand, whose buffers are locked";
  if (limit.soft < 0 || (!machine.has_infiniband && limit.soft >= 64000)) return;
  finding.state = machine.has_infiniband ? State::kFailed : State::kWarning;
  finding.fix = limit.hard < 0
                    ? "ulimit -l unlimited, before muster and in the job's script too"
                    : "ask the administrator for \"* soft memlock unlimited\" and \"* hard memlock "
                      "unlimited\" in /etc/security/limits.conf and LimitMEMLOCK=infinity in slurmd's service";
}

void check_shared_memory(const Machine& machine, Finding& finding) {
  const auto& room = machine.shared_memory;
  finding.figures = {{"size_bytes", room.size}, {"free_bytes", room.free}};
  finding.found = fmt::format("{} of {} free in /dev/shm", size_text(room.free), size_text(room.size));
  if (!machine.has_shared_memory) {
    finding.found = "/dev/shm is missing, or you may not write to it";
    finding.fail("mount a tmpfs there: mount -t tmpfs -o mode=1777 tmpfs /dev/shm");
  } else if (room.free < 64 * kMega) {
    finding.state = room.free < 16 * kMega ? State::kFailed : State::kWarning;
    finding.fix = room.size < 64 * kMega ? "make it larger: docker run --shm-size=1g (or --ipc=host), or as root: "
                                           "mount -o remount,size=1g /dev/shm"
                                         : "remove what dead jobs have left in it: ls -l /dev/shm";
  }
}

void check_cores(const Machine& machine, Finding& finding) {
  finding.found = fmt::format("{} usable", machine.cores);
  finding.figures = {{"usable", machine.cores}, {"quota", machine.core_quota}};
  if (machine.core_quota == 0) return;
  finding.found += fmt::format(", but the container or job may use only {:.3g} of them at a time", machine.core_quota);
  if (machine.core_quota < machine.cores - 0.01)
    finding.warn(
        fmt::format("start at most {} ranks with training.threads: 1, or raise the quota (docker run --cpus, "
                    "the job's --cpus-per-task)",
                    std::max(1, static_cast<int>(machine.core_quota))));
}

void check_memory(const Machine& machine, Finding& finding) {
  const bool limited = machine.memory_limit > 0;
  const int64_t usable = limited ? machine.memory_limit : machine.memory;
  finding.found = size_text(usable);
  if (limited)
    finding.found += fmt::format(" of the machine's {} (limit of the container or job)", size_text(machine.memory));
  finding.figures = {{"machine_bytes", machine.memory}, {"limit_bytes", machine.memory_limit}};
  if (usable < 2000 * kMega)
    finding.warn(
        "ask for more: Slurm --mem, docker run --memory; each rank holds LibTorch (0.4 GB), the model and its batch");
}

void check_load(const Machine& machine, Finding& finding) {
  finding.found = fmt::format("{:.1f} for {} cores", machine.load, machine.cores);
  finding.figures = {{"one_minute", machine.load}};
  if (machine.load >= machine.cores + 1)
    finding.warn(
        "other programs are computing here (top shows which): the times below are worse than they could be; use "
        "another machine, or wait");
}

void check_host_name(const Machine& machine, Finding& finding) {
  finding.figures["addresses"] = machine.addresses;
  if (machine.addresses.empty()) {
    finding.found = machine.host + " resolves to no address";
    return finding.warn(
        fmt::format("give {} its address in /etc/hosts or DNS; until then MPI may wait long for names", machine.host));
  }
  finding.found = fmt::format("{} is {}", machine.host, join(machine.addresses, ", "));
  for (const auto& address : machine.addresses)
    if (address.rfind("127.", 0) != 0 && address != "::1") return;
  if (machine.several_hosts)
    finding.warn(
        fmt::format("give {} its address in /etc/hosts or DNS, not a loopback one, which on other machines means "
                    "themselves",
                    machine.host));
  else
    finding.found += " (a loopback address: enough on one machine)";
}

void check_gpu(const Machine& machine, Finding& finding) {
  const int there = machine.nvidia_gpus, seen = static_cast<int>(machine.visible.gpus.size());
  finding.figures = {{"machine", there}, {"visible", seen}};
  if (there == 0 && seen == 0)
    return finding.skip(machine.nvidia_driver.empty()
                            ? "no NVIDIA GPU here (no /dev/nvidia*, no driver)"
                            : fmt::format("driver {}, but no GPU here", machine.nvidia_driver));
  if (!machine.built_with_cuda) {
    finding.found = fmt::format("this machine has {}, but muster was built without CUDA and computes on the CPU",
                                plural(there, "GPU"));
    return finding.warn("build it for GPUs: ./setup.sh --device cuda");
  }
  if (seen == 0) {
    finding.found =
        fmt::format("this machine has {}, but CUDA sees none: {}", plural(there, "GPU"), machine.visible.why_none);
    return finding.fail(
        "run nvidia-smi: if it fails too, the driver is the problem (in a container: docker run --gpus all, "
        "apptainer --nv)");
  }
  finding.found =
      fmt::format("{} of {} ({})", plural(seen, "GPU"), std::max(there, seen), machine.visible.gpus[0].name);
  if (!machine.nvidia_driver.empty()) finding.found += ", driver " + machine.nvidia_driver;
}

std::string cuda_version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

void check_cuda(const Machine& machine, Finding& finding) {
  if (!machine.built_with_cuda) return finding.skip("muster was built without CUDA");
  const int driver = machine.cuda_of_driver, runtime = machine.cuda_of_runtime;
  finding.figures = {{"driver", driver}, {"runtime", runtime}};
  if (driver == 0 || runtime == 0) return finding.skip("no driver or no CUDA runtime in this process");
  finding.found =
      fmt::format("runtime {}, the driver supports up to {}", cuda_version_text(runtime), cuda_version_text(driver));
  if (driver / 1000 < runtime / 1000)
    finding.fail("update the NVIDIA driver, or build muster with a torch for CUDA " + cuda_version_text(driver));
}

// CUDA silently hides every device after the first wrong entry, which it hides too.
void check_cuda_visible(const Machine& machine, Finding& finding) {
  const auto set = machine.environment.find("CUDA_VISIBLE_DEVICES");
  finding.found = "CUDA_VISIBLE_DEVICES is not set";
  if (set == machine.environment.end()) return;
  finding.found = "CUDA_VISIBLE_DEVICES=" + set->second;
  const int there = machine.nvidia_gpus;
  if (set->second.empty() || set->second == "-1" || set->second == "NoDevFiles") {
    if (there == 0) return;
    finding.found += fmt::format(" hides all {} of this machine", plural(there, "GPU"));
    return finding.warn("unset CUDA_VISIBLE_DEVICES, or ask the scheduler for GPUs (Slurm: --gpus-per-node)");
  }
  std::set<std::string> seen;
  std::istringstream parts(set->second);
  for (std::string part; std::getline(parts, part, ',');) {
    const bool number = std::regex_match(part, std::regex("[0-9]{1,3}"));
    std::string wrong;
    if (!number && !std::regex_match(part, std::regex("(GPU|MIG)-[0-9a-fA-F/-]+")))
      wrong = fmt::format("\"{}\" is neither a number nor a UUID", part);
    else if (number && there > 0 && std::stoi(part) >= there)
      wrong = fmt::format("there is no GPU {} here, only {}", part, plural(there, "GPU"));
    else if (!seen.insert(part).second)
      wrong = part + " is named twice";
    if (wrong.empty()) continue;
    finding.found += fmt::format(": {}; CUDA ignores that entry and all after it", wrong);
    finding.fail("unset CUDA_VISIBLE_DEVICES, or name GPUs that nvidia-smi -L lists");
    if (there == 0) finding.state = State::kWarning;  // it has no effect without GPUs
    return;
  }
  const int count = static_cast<int>(seen.size());
  if (there > count) finding.found += fmt::format(": {} of {} here", plural(count, "GPU"), there);
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
  if (start.directory_error) throw unusable_directory(start.directory, start.directory_error);
  const Mount mount = mount_of(start.directory, start.machine.mounts);
  finding.found = fmt::format("{} on {}", start.directory, mount.type.empty() ? "an unknown file system" : mount.type);
  finding.figures.update(
      {{"type", mount.type}, {"source", mount.source}, {"mounted_at", mount.point}, {"options", mount.options}});
  for (const auto& trouble : kFileSystemTroubles) {
    if (!std::regex_match(mount.type, std::regex(trouble.type)) ||
        (*trouble.option && ("," + mount.options + ",").find(fmt::format(",{},", trouble.option)) == std::string::npos))
      continue;
    finding.found += trouble.found;
    return finding.warn(trouble.fix);
  }
  static const std::regex network("nfs4?|lustre|gpfs|beegfs|ceph|panfs|afs|virtiofs|wekafs|pvfs2");
  if (start.machine.several_hosts && !mount.type.empty() && !std::regex_match(mount.type, network))
    finding.found += " (a disk of this machine; \"shared\" below says whether the others see it)";
}

void check_free_space(const Start& start, Finding& finding) {
  const Space room = free_space(start.directory).value_or(Space());
  const bool counts = room.inodes > 0;  // btrfs, Lustre clients and others may not count them
  finding.found = size_text(room.free) + " free";
  if (counts) finding.found += fmt::format(", room for {} files", room.free_inodes);
  finding.figures = {
      {"size_bytes", room.size}, {"free_bytes", room.free}, {"inodes", room.inodes}, {"free_inodes", room.free_inodes}};
  if (room.free >= 1000 * kMega && (!counts || room.free_inodes >= 10000)) return;
  finding.warn("make room (muster checkpoints prune removes old checkpoints), or name another place: --directory DIR");
  if (room.free < 50 * kMega || (counts && room.free_inodes < 100)) finding.state = State::kFailed;
}

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

std::string Machine::variable(const std::string& name) const {
  const auto found = environment.find(name);
  return found == environment.end() ? "" : found->second;
}

Failure unusable_directory(const std::string& path, const std::error_code& error) {
  return {fmt::format("{}: {}", path, error.message()),
          error == std::errc::no_such_file_or_directory
              ? "make it first (mkdir -p), or name another: --directory DIR"
              : "name a folder that you may write to, on a file system with room: --directory DIR"};
}

const std::vector<Check<const Machine>> kMachineChecks = {
    {"versions", "", check_versions},
    {"built_with", "the libraries at run time are those that muster was built with", check_built_with},
    {"duplicates", "", check_duplicates},
    {"preload", "at most a memory allocator", check_preload},
    {"library_path",
     "LibTorch, CUDA, NCCL, protobuf, HDF5 and the C++ runtime come from where muster was built with them",
     check_library_path},
    {"open_files", "at least 1024 open files: connections between ranks, data and checkpoint files",
     check_limit<'n', 256, 1024>},
    {"processes", "at least 1024 processes and threads: ranks and their threads", check_limit<'u', 64, 1024>},
    {"stack", "a stack of at least 2 MB per thread: libraries put arrays there",
     check_limit<'s', kMega / 2, 2 * kMega, true>},
    {"file_size", "files of at least 10 GB: checkpoints and predictions",
     check_limit<'f', 100 * kMega, 10000 * kMega, true>},
    {"address_space", "an address space of at least 64 GB: LibTorch reserves far more than it uses",
     check_limit<'v', 4000 * kMega, 64000 * kMega, true>},
    {"locked_memory", "at least 64 KB; unlimited where ranks communicate over InfiniBand or RoCE", check_locked_memory},
    {"shared_memory", "at least 64 MB free: ranks of one machine pass data through it, some 4 MB each (NCCL 10 MB)",
     check_shared_memory},
    {"cores",
     "no quota below the number of cores: ranks start as many threads as they see cores, and are then all held up",
     check_cores},
    {"memory", "at least 2 GB", check_memory},
    {"load", "below the number of cores", check_load},
    {"host_name", "a name that resolves to an address that the other machines can reach", check_host_name},
    {"gpu", "every GPU of the machine can be used", check_gpu},
    {"cuda", "a driver at least as new as the CUDA runtime", check_cuda},
    {"cuda_visible", "numbers of GPUs from 0 as \"0,1\", or UUIDs as GPU-...", check_cuda_visible},
};

const std::vector<Check<const Start>> kStartChecks = {
    {"mpirun", "", check_mpirun},
    {"srun", "srun offers pmix", check_srun},
    {"directory",
     "a folder that can be written to, on a file system that outlives the job and that all its machines share",
     check_directory},
    {"free_space", "at least 1 GB and 10000 files", check_free_space, "directory"},
};

}  // namespace muster::launcher::doctor
