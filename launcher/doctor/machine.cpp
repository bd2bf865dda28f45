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
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/files.h"
#include "base/host.h"
#include "core/training/compute.h"
#include "distributed/communicator.h"
#include "distributed/nccl.h"

extern char** environ;

namespace muster::launcher::doctor {
namespace {

namespace fs = std::filesystem;

std::istringstream text_of(const std::string& path) {
  return std::istringstream(read_file_if_there(path, 64 << 20).value_or(""));
}

Limit limit_of(__rlimit_resource_t resource) {
  struct rlimit limit = {};
  getrlimit(resource, &limit);
  const auto number = [](rlim_t value) { return value == RLIM_INFINITY ? int64_t{-1} : static_cast<int64_t>(value); };
  return {number(limit.rlim_cur), number(limit.rlim_max)};
}

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

// The folders of this process's control group and those above it, where its limits may be: one hierarchy, or one per
// controller.
std::vector<std::string> group_folders(const std::string& controller) {
  std::vector<std::string> folders;
  auto lines = text_of("/proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string root;
    if (controllers == ",,") root = "/sys/fs/cgroup";
    if (controllers.find("," + controller + ",") != std::string::npos) root = "/sys/fs/cgroup/" + controller;
    if (root.empty()) continue;
    // Inside a container the path may be the host's, of which only the root is mounted.
    for (fs::path path = line.substr(second + 1);; path = path.parent_path()) {
      folders.push_back(root + (path == "/" ? "" : path.string()));
      if (path == "/" || path.empty()) break;
    }
  }
  return folders;
}

double core_quota() {
  double smallest = 0;
  for (const auto& folder : group_folders("cpu")) {
    double quota = -1, period = 0;
    text_of(folder + "/cpu.max") >> quota >> period;  // "max 100000": no number
    if (period <= 0) {
      text_of(folder + "/cpu.cfs_quota_us") >> quota;
      text_of(folder + "/cpu.cfs_period_us") >> period;
    }
    if (quota > 0 && period > 0 && (smallest == 0 || quota / period < smallest)) smallest = quota / period;
  }
  return smallest;
}

int64_t memory_limit(int64_t memory) {
  int64_t smallest = 0;
  for (const auto& folder : group_folders("memory"))
    for (const char* name : {"/memory.max", "/memory.limit_in_bytes"}) {
      int64_t limit = 0;
      text_of(folder + name) >> limit;
      if (limit > 0 && limit < memory && (smallest == 0 || limit < smallest)) smallest = limit;
    }
  return smallest;
}

// Does not link against CUDA: asks only a library that is there.
int cuda_version(const char* library, const char* function) {
  void* handle = library ? dlopen(library, RTLD_LAZY | RTLD_LOCAL) : RTLD_DEFAULT;
  if (library && !handle) return 0;
  int version = 0;
  if (void* found = dlsym(handle, function)) reinterpret_cast<int (*)(int*)>(found)(&version);
  return version;
}

int note_library(dl_phdr_info* library, size_t, void* libraries) {
  if (library->dlpi_name[0] == '/') static_cast<std::vector<std::string>*>(libraries)->push_back(library->dlpi_name);
  return 0;
}

int count_entries(const std::string& folder) {
  std::error_code error;
  const fs::directory_iterator entries(folder, error);
  return error ? 0 : static_cast<int>(std::distance(begin(entries), end(entries)));
}

int count_gpu_files() {
  int count = 0;
  for (int number = 0; number < 64; ++number) count += access(fmt::format("/dev/nvidia{}", number).c_str(), F_OK) == 0;
  return count;
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  ..."
std::string nvidia_driver() {
  auto words = text_of("/proc/driver/nvidia/version");
  for (std::string word; words >> word;)
    if (word.find_first_not_of("0123456789.") == std::string::npos && word.find('.') != std::string::npos) return word;
  return "";
}

}  // namespace

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
  for (char** each = environ; *each; ++each) {
    const std::string text = *each;
    machine.environment[text.substr(0, text.find('='))] = text.substr(std::min(text.size(), text.find('=') + 1));
  }
  dl_iterate_phdr(note_library, &machine.libraries);
  machine.mounts = text_of("/proc/self/mounts").str();
  machine.limits = {{"open_files", limit_of(RLIMIT_NOFILE)}, {"processes", limit_of(RLIMIT_NPROC)},
                    {"stack", limit_of(RLIMIT_STACK)},       {"locked_memory", limit_of(RLIMIT_MEMLOCK)},
                    {"file_size", limit_of(RLIMIT_FSIZE)},   {"address_space", limit_of(RLIMIT_AS)}};
  machine.has_shared_memory = access("/dev/shm", W_OK | X_OK) == 0;
  machine.shared_memory = free_space("/dev/shm").value_or(Space());
  text_of("/proc/loadavg") >> machine.load;
  machine.cores = training::usable_cores();
  machine.core_quota = core_quota();
  machine.memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  machine.memory_limit = memory_limit(machine.memory);
  machine.has_infiniband = count_entries("/sys/class/infiniband") > 0;
  machine.versions = loaded_versions();
  machine.built_with_cuda = !distributed::nccl_version().empty();
  machine.visible = distributed::visible_gpus();
  machine.nvidia_driver = nvidia_driver();
  machine.nvidia_gpus = std::max(count_entries("/proc/driver/nvidia/gpus"), count_gpu_files());
  machine.cuda_of_driver = machine.nvidia_gpus > 0 ? cuda_version("libcuda.so.1", "cuDriverGetVersion") : 0;
  machine.cuda_of_runtime = cuda_version(nullptr, "cudaRuntimeGetVersion");
  return machine;
}

}  // namespace muster::launcher::doctor
