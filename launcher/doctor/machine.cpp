#include "launcher/doctor/machine.h"

#include <ATen/Version.h>
#include <H5public.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <gnu/libc-version.h>
#include <google/protobuf/stubs/common.h>
#include <link.h>
#include <netdb.h>
#include <sys/resource.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <regex>
#include <set>
#include <sstream>

#include "base/host.h"
#include "base/text.h"
#include "core/training/compute.h"
#include "distributed/communicator.h"
#include "distributed/nccl.h"
#include "launcher/launch/launch_environment.h"

namespace muster::launcher::doctor {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMega = 1000000;

std::istringstream text_of(const std::string& path) {
  return std::istringstream(read_file_if_there(path, 64 << 20).value_or(""));
}

// 0: there is none.
double number_in(const std::string& path) {
  double number = 0;
  text_of(path) >> number;
  return number;
}

int count_entries(const std::string& folder, const std::string& pattern) {
  std::error_code error;
  const fs::directory_iterator entries(folder, error);
  return static_cast<int>(std::count_if(begin(entries), end(entries), [&](const fs::directory_entry& entry) {
    return std::regex_match(entry.path().filename().string(), std::regex(pattern));
  }));
}

// Libraries.

// Those of which a process must have only one, and why. A file belongs to a family by its name, whatever hash or
// version a packager has added.
struct LibraryFamily {
  const char* name;
  const char* pattern;  // of the name, before a hash and .so
  State state;          // when there are two
  const char* why;
};
const LibraryFamily kFamilies[] = {
    {"MPI", "libmpi", State::kFailed, "each would start a job of its own"},
    {"NCCL", "libnccl", State::kFailed, "each keeps its own communicators"},
    {"protobuf", "libprotobuf", State::kFailed, "messages of one crash in the other"},
    {"CUDA runtime", "libcudart", State::kFailed, "each keeps its own streams"},
    {"HDF5", "libhdf5(_serial|_openmpi|_mpich)?", State::kFailed, "files opened by one are unknown to the other"},
    {"C++ runtime", R"(libstdc\+\+)", State::kFailed, "exceptions thrown through one are not caught in the other"},
    {"LibTorch", "libtorch_cpu", State::kFailed, "tensors of one are unknown to the other"},
    {"hwloc", "libhwloc", State::kWarning, "MPI and the scheduler may disagree about cores"},
    {"PMIx", "libpmix", State::kWarning, "MPI and the scheduler may not understand each other"},
    {"OpenMP", "lib(gomp|iomp5|omp)", State::kWarning, "each starts its own threads, on the same cores"},
};

bool has_name(const std::string& path, const std::string& pattern) {
  return std::regex_match(path.substr(path.rfind('/') + 1), std::regex(pattern));
}

void check_versions(const Machine& machine, Finding& finding) {
  for (const auto& each : machine.versions) {
    finding.found += fmt::format("{}{} {}", finding.found.empty() ? "" : ", ", each.library, each.loaded);
    finding.figures[each.library] = each.loaded;
  }
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
  finding.found = fmt::format("the same {} as at run time", join(same));
  if (different.empty()) return;
  finding.found = join(different, "; ");
  finding.fix = "load the modules (or environment) that muster was built under, or build it again (./setup.sh)";
}

void check_duplicates(const Machine& machine, Finding& finding) {
  std::vector<std::string> duplicates;
  for (const auto& family : kFamilies) {
    std::vector<std::string> paths;
    for (const auto& path : machine.libraries)
      if (has_name(path, fmt::format(R"({}(-[0-9a-f]+)?\.so.*)", family.pattern))) paths.push_back(path);
    if (!paths.empty()) finding.figures[family.name] = paths.size();
    if (paths.size() < 2) continue;
    duplicates.push_back(fmt::format("{} {} libraries: {} ({})",
                                     paths.size() == 2 ? "two" : fmt::to_string(paths.size()), family.name,
                                     join(paths, " and "), family.why));
    finding.state = std::max(finding.state, family.state);
  }
  finding.found = duplicates.empty() ? "none" : join(duplicates, "; ");
  if (!duplicates.empty())
    finding.fix =
        "LD_DEBUG=libs muster --version shows what loads them: remove the second one from LD_PRELOAD, LD_LIBRARY_PATH "
        "or the loaded modules";
}

std::string variable(const Machine& machine, const std::string& name) {
  const auto found = machine.environment.find(name);
  return found == machine.environment.end() ? "" : found->second;
}

void check_preload(const Machine& machine, Finding& finding) {
  const std::string preloaded = variable(machine, "LD_PRELOAD");
  finding.found = preloaded.empty() ? "LD_PRELOAD is not set" : "LD_PRELOAD=" + preloaded;
  std::istringstream paths(std::regex_replace(preloaded, std::regex(":"), " "));
  for (std::string path; paths >> path;)
    if (!has_name(path, "lib(tcmalloc|jemalloc|mimalloc).*"))
      finding.warn("unset LD_PRELOAD: what it names replaces functions of every program, including mpirun and ssh");
}

// Modules of a cluster set LD_LIBRARY_PATH, usually for MPI. Libraries that the build has fixed paths for must not
// come from there.
void check_library_path(const Machine& machine, Finding& finding) {
  const std::string folders = variable(machine, "LD_LIBRARY_PATH");
  finding.found = folders.empty() ? "LD_LIBRARY_PATH is not set" : "LD_LIBRARY_PATH replaces nothing that matters";
  std::vector<std::string> replaced;
  std::istringstream parts(folders);
  for (std::string folder; std::getline(parts, folder, ':');)
    for (const auto& path : machine.libraries)
      if (!folder.empty() && fs::path(path).parent_path() == fs::path(folder + "/").parent_path() &&
          has_name(path, R"(lib(torch|c10|cudart|nccl|protobuf|hdf5|stdc\+\+|gomp).*)"))
        replaced.push_back(path);
  if (replaced.empty()) return;
  finding.found = "LD_LIBRARY_PATH puts these in place of others: " + join(replaced);
  finding.warn("take these folders out of LD_LIBRARY_PATH (unload the modules that add them), or rebuild with them");
}

int note_library(dl_phdr_info* library, size_t, void* libraries) {
  if (library->dlpi_name[0] == '/') static_cast<std::vector<std::string>*>(libraries)->push_back(library->dlpi_name);
  return 0;
}

// Limits of the process.

struct LimitKind {
  const char* check;
  __rlimit_resource resource;
  char option;       // of ulimit
  const char* item;  // of limits.conf
  int64_t fail_below, warn_below;
  bool in_bytes;
};
const LimitKind kLimits[] = {
    {"open_files", RLIMIT_NOFILE, 'n', "nofile", 256, 1024, false},
    {"processes", RLIMIT_NPROC, 'u', "nproc", 64, 1024, false},
    {"stack", RLIMIT_STACK, 's', "stack", kMega / 2, 2 * kMega, true},
    {"file_size", RLIMIT_FSIZE, 'f', "fsize", 100 * kMega, 10000 * kMega, true},
    {"address_space", RLIMIT_AS, 'v', "as", 4000 * kMega, 64000 * kMega, true},
    {"locked_memory", RLIMIT_MEMLOCK, 'l', "memlock", 0, 64000, true},
};

void check_limit(const Machine& machine, Finding& finding) {
  const auto& kind = *std::find_if(std::begin(kLimits), std::end(kLimits),
                                   [&](const LimitKind& each) { return each.check == finding.check; });
  const auto [soft, hard] = machine.limits.at(finding.check);
  finding.found = soft < 0 ? "unlimited" : kind.in_bytes ? size_text(soft) : fmt::to_string(soft);
  finding.figures = {{"soft", soft}, {"hard", hard}};
  auto fail_below = kind.fail_below, warn_below = kind.warn_below;
  if (kind.resource == RLIMIT_MEMLOCK) {
    finding.figures["infiniband"] = machine.has_infiniband;
    if (machine.has_infiniband) fail_below = warn_below = std::numeric_limits<int64_t>::max();
  }
  if (soft < 0 || soft >= warn_below) return;
  finding.state = soft < fail_below ? State::kFailed : State::kWarning;
  if (hard < 0 || hard >= warn_below)
    finding.fix = fmt::format("ulimit -S -{} {}, before muster and in the job's script too", kind.option,
                              hard < 0 ? "unlimited" : "hard");
  else
    finding.fix = fmt::format(
        "ask the administrator to raise the hard limit: {} in /etc/security/limits.conf, and in "
        "the unit of slurmd",
        kind.item);
}

// Memory and cores.

// The smallest limit that this process's control group or one above it has by `limit_of` a group's folder; 0: none.
double group_limit(const std::string& controller, double (*limit_of)(const std::string& folder)) {
  double smallest = 0;
  auto lines = text_of("/proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {
    std::smatch found;  // one hierarchy for all controllers, or several
    if (!std::regex_match(line, found, std::regex("[0-9]+:([^:]*):(.*)"))) continue;
    std::string root = "/sys/fs/cgroup";
    if (found[1].length() > 0) {
      if (fmt::format(",{},", found[1].str()).find(fmt::format(",{},", controller)) == std::string::npos) continue;
      root += "/" + controller;
    }
    // Inside a container the path may be the host's, of which only the root is mounted.
    for (fs::path path = found[2].str();; path = path.parent_path()) {
      const double limit = limit_of(root + (path == "/" ? "" : path.string()));
      if (limit > 0 && (smallest == 0 || limit < smallest)) smallest = limit;
      if (path == "/" || path.empty()) break;
    }
  }
  return smallest;
}

double cores_of_group(const std::string& folder) {
  double quota = 0, period = 0;
  if (!(text_of(folder + "/cpu.max") >> quota >> period)) {  // "max 100000": no number
    quota = number_in(folder + "/cpu.cfs_quota_us");
    period = number_in(folder + "/cpu.cfs_period_us");
  }
  return period > 0 ? quota / period : 0;
}

double memory_of_group(const std::string& folder) {
  return std::max(number_in(folder + "/memory.max"), number_in(folder + "/memory.limit_in_bytes"));
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
    finding.fix = "remove what dead jobs have left in it: ls -l /dev/shm";
    if (room.size < 64 * kMega)
      finding.fix = "enlarge it: docker run --shm-size=1g or --ipc=host; as root: mount -o remount,size=1g /dev/shm";
  }
}

void check_cores(const Machine& machine, Finding& finding) {
  finding.found = fmt::format("{} usable", machine.cores);
  finding.figures = {{"usable", machine.cores}, {"quota", machine.core_quota}};
  if (machine.core_quota == 0) return;
  finding.found += fmt::format(", but the container or job may use only {:.3g} of them at a time", machine.core_quota);
  if (machine.core_quota < machine.cores - 0.01)
    finding.warn(
        fmt::format("start at most {} with training.threads: 1, or raise the quota (docker run --cpus, the "
                    "job's --cpus-per-task)",
                    plural(std::max(1, static_cast<int>(machine.core_quota)), "rank")));
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
    finding.warn("other programs are computing here (see top), so the times below are too long: wait, or move");
}

// Its name.

std::vector<std::string> addresses_of(const std::string& host) {
  addrinfo hints = {}, *list = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  std::vector<std::string> found;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &list) != 0) return found;
  for (const addrinfo* each = list; each; each = each->ai_next) {
    char text[NI_MAXHOST];
    if (getnameinfo(each->ai_addr, each->ai_addrlen, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0 &&
        std::find(found.begin(), found.end(), text) == found.end())
      found.push_back(text);
  }
  freeaddrinfo(list);
  return found;
}

void check_host_name(const Machine& machine, Finding& finding) {
  const auto& [host, addresses] = std::tie(machine.host, machine.addresses);
  finding.figures["addresses"] = addresses;
  finding.found = fmt::format("{} is {}", host, join(addresses));
  const std::string fix = fmt::format("give {} its address in /etc/hosts or DNS", host);
  if (addresses.empty()) {
    finding.found = host + " resolves to no address";
    return finding.warn(fix + "; until then MPI may wait long for names");
  }
  if (!std::all_of(addresses.begin(), addresses.end(),
                   [](const std::string& address) { return address.rfind("127.", 0) == 0 || address == "::1"; }))
    return;
  if (machine.several_hosts)
    return finding.warn(fix + ", not a loopback one, which means themselves on other machines");
  finding.found += " (a loopback address: enough on one machine)";
}

// GPUs.

void check_gpu(const Machine& machine, Finding& finding) {
  const int there = machine.nvidia_gpus, seen = static_cast<int>(machine.visible.gpus.size());
  const std::string all = plural(there, "GPU"), &driver = machine.nvidia_driver;
  finding.figures = {{"machine", there}, {"visible", seen}};
  if (there == 0 && seen == 0) {
    finding.skip(driver.empty() ? "no NVIDIA GPU here (no /dev/nvidia*, no driver)"
                                : fmt::format("driver {}, but no GPU here", driver));
  } else if (!machine.built_with_cuda) {
    finding.found = fmt::format("this machine has {}, but muster was built without CUDA and computes on the CPU", all);
    finding.warn("build it for GPUs: ./setup.sh --device cuda");
  } else if (seen == 0) {
    finding.found = fmt::format("this machine has {}, but CUDA sees none: {}", all, machine.visible.why_none);
    finding.fail("if nvidia-smi fails too, it is the driver (containers: docker run --gpus all, apptainer --nv)");
  } else {
    finding.found = fmt::format("{} of {} ({}){}{}", plural(seen, "GPU"), std::max(there, seen),
                                machine.visible.gpus[0].name, driver.empty() ? "" : ", driver ", driver);
  }
}

// Does not link against CUDA: asks only a library that is there.
int cuda_version(const char* library, const char* function) {
  void* handle = library ? dlopen(library, RTLD_LAZY | RTLD_LOCAL) : RTLD_DEFAULT;
  if (library && !handle) return 0;
  int version = 0;
  if (void* found = dlsym(handle, function)) reinterpret_cast<int (*)(int*)>(found)(&version);
  return version;
}

void check_cuda(const Machine& machine, Finding& finding) {
  if (!machine.built_with_cuda) return finding.skip("muster was built without CUDA");
  const int driver = machine.cuda_of_driver, runtime = machine.cuda_of_runtime;
  finding.figures = {{"driver", driver}, {"runtime", runtime}};
  if (driver == 0 || runtime == 0) return finding.skip("no driver or no CUDA runtime in this process");
  const auto text = [](int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); };
  finding.found = fmt::format("runtime {}, the driver supports up to {}", text(runtime), text(driver));
  if (driver / 1000 < runtime / 1000)
    finding.fail("update the NVIDIA driver, or build muster with a torch for CUDA " + text(driver));
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

}  // namespace

std::string version_in(const std::string& text) {
  std::smatch found;
  return std::regex_search(text, found, std::regex(R"(\d+\.\d+(\.\d+)?)")) ? found[0].str() : "";
}

std::vector<Version> loaded_versions() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  std::vector<Version> versions{{"muster", "", MUSTER_VERSION},
                                {"torch", "", TORCH_VERSION},
                                {"MPI", distributed::mpi_headers_version(), distributed::mpi_library_version()},
                                {"HDF5", fmt::format("{}.{}.{}", H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE),
                                 fmt::format("{}.{}.{}", major, minor, release)},
                                {"protobuf", "", google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION)},
                                {"glibc", "", gnu_get_libc_version()}};
  if (const auto nccl = distributed::nccl_version(); !nccl.empty()) versions.push_back({"NCCL", "", nccl});
  return versions;
}

Machine detect_machine(bool several_hosts) {
  Machine machine;
  machine.several_hosts = several_hosts;
  machine.host = host_name();
  machine.addresses = addresses_of(machine.host);
  machine.environment = process_environment();
  dl_iterate_phdr(note_library, &machine.libraries);
  for (const auto& kind : kLimits) {
    struct rlimit limit = {};
    getrlimit(kind.resource, &limit);
    static_assert(static_cast<int64_t>(RLIM_INFINITY) == -1);
    machine.limits[kind.check] = {static_cast<int64_t>(limit.rlim_cur), static_cast<int64_t>(limit.rlim_max)};
  }
  machine.has_shared_memory = access("/dev/shm", W_OK | X_OK) == 0;
  machine.shared_memory = free_space("/dev/shm").value_or(Space());
  machine.load = number_in("/proc/loadavg");
  machine.cores = training::usable_cores();
  machine.core_quota = group_limit("cpu", cores_of_group);
  machine.memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  const double limit = group_limit("memory", memory_of_group);
  if (limit < static_cast<double>(machine.memory)) machine.memory_limit = static_cast<int64_t>(limit);
  machine.has_infiniband = count_entries("/sys/class/infiniband", ".*") > 0;
  machine.versions = loaded_versions();
  machine.built_with_cuda = !distributed::nccl_version().empty();
  machine.visible = distributed::visible_gpus();
  machine.nvidia_driver = version_in(first_line_of("/proc/driver/nvidia/version"));
  machine.nvidia_gpus =
      std::max(count_entries("/proc/driver/nvidia/gpus", ".*"), count_entries("/dev", "nvidia[0-9]+"));
  machine.cuda_of_driver = machine.nvidia_gpus > 0 ? cuda_version("libcuda.so.1", "cuDriverGetVersion") : 0;
  machine.cuda_of_runtime = cuda_version(nullptr, "cudaRuntimeGetVersion");
  return machine;
}

const std::vector<Check<const Machine>> kMachineChecks = {
    {"versions", "", check_versions},
    {"built_with", "the libraries at run time are those that muster was built with", check_built_with},
    {"duplicates",
     "one file of each of MPI, NCCL, protobuf, CUDA runtime, HDF5, C++ runtime, LibTorch, hwloc, PMIx, OpenMP",
     check_duplicates},
    {"preload", "at most a memory allocator", check_preload},
    {"library_path", "libraries come from where muster was built with them (torch, CUDA, NCCL, protobuf, HDF5, C++)",
     check_library_path},
    {"open_files", "at least 1024 open files: connections between ranks, data and checkpoint files", check_limit},
    {"processes", "at least 1024 processes and threads: ranks and their threads", check_limit},
    {"stack", "a stack of at least 2 MB per thread: libraries put arrays there", check_limit},
    {"file_size", "files of at least 10 GB: checkpoints and predictions", check_limit},
    {"address_space", "an address space of at least 64 GB: LibTorch reserves far more than it uses", check_limit},
    {"locked_memory", "at least 64 KB; unlimited with InfiniBand or RoCE, whose buffers are locked", check_limit},
    {"shared_memory", "at least 64 MB free: ranks of one machine pass data through it, some 4 MB each (NCCL 10 MB)",
     check_shared_memory},
    {"cores", "no quota below the number of cores: ranks start a thread for each core that they see", check_cores},
    {"memory", "at least 2 GB", check_memory},
    {"load", "below the number of cores", check_load},
    {"host_name", "a name that resolves to an address that the other machines can reach", check_host_name},
    {"gpu", "every GPU of the machine can be used", check_gpu},
    {"cuda", "a driver at least as new as the CUDA runtime", check_cuda},
    {"cuda_visible", "numbers of GPUs from 0 as \"0,1\", or UUIDs as GPU-...", check_cuda_visible},
};

}  // namespace muster::launcher::doctor
