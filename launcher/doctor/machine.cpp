#include "launcher/doctor/machine.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/files.h"
#include "base/host.h"
#include "core/training/compute.h"

extern char** environ;

namespace muster::launcher::doctor {
namespace {

namespace fs = std::filesystem;

Limit limit_of(int resource) {
  struct rlimit limit = {};
  getrlimit(static_cast<__rlimit_resource_t>(resource), &limit);
  const auto number = [](rlim_t value) { return value == RLIM_INFINITY ? int64_t{-1} : static_cast<int64_t>(value); };
  return {number(limit.rlim_cur), number(limit.rlim_max)};
}

std::vector<std::string> addresses_of(const std::string& host) {
  addrinfo hints = {}, *list = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  std::vector<std::string> found;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &list) != 0) return found;
  for (const addrinfo* each = list; each; each = each->ai_next) {
    char text[INET6_ADDRSTRLEN] = "";
    const void* address = each->ai_family == AF_INET
                              ? static_cast<const void*>(&reinterpret_cast<sockaddr_in*>(each->ai_addr)->sin_addr)
                              : &reinterpret_cast<sockaddr_in6*>(each->ai_addr)->sin6_addr;
    if (inet_ntop(each->ai_family, address, text, sizeof text)) found.push_back(text);
  }
  freeaddrinfo(list);
  return found;
}

// The folders of this process's control group and those above it, where its limits may be: one hierarchy, or one per
// controller.
std::vector<std::string> group_folders(const std::string& controller) {
  std::vector<std::string> folders;
  std::istringstream lines(read_text("/proc/self/cgroup"));
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
    std::istringstream(read_text(folder + "/cpu.max")) >> quota >> period;  // "max 100000": no number
    if (period <= 0) {
      std::istringstream(read_text(folder + "/cpu.cfs_quota_us")) >> quota;
      std::istringstream(read_text(folder + "/cpu.cfs_period_us")) >> period;
    }
    if (quota > 0 && period > 0 && (smallest == 0 || quota / period < smallest)) smallest = quota / period;
  }
  return smallest;
}

int64_t memory_limit(int64_t memory) {
  int64_t smallest = 0;
  for (const auto& folder : group_folders("memory"))
    for (const char* name : {"/memory.max", "/memory.limit_in_bytes"}) {
      const int64_t limit = std::atoll(read_text(folder + name).c_str());
      if (limit > 0 && limit < memory && (smallest == 0 || limit < smallest)) smallest = limit;
    }
  return smallest;
}

// Without linking against CUDA: only what is there already is asked.
int cuda_version(const char* library, const char* function) {
  void* handle = library ? dlopen(library, RTLD_LAZY | RTLD_LOCAL) : RTLD_DEFAULT;
  if (library && !handle) return 0;
  int version = 0;
  if (void* found = dlsym(handle, function)) reinterpret_cast<int (*)(int*)>(found)(&version);
  return version;
}

int count_entries(const std::string& folder) {
  std::error_code error;
  int count = 0;
  for (auto each = fs::directory_iterator(folder, error); !error && each != fs::directory_iterator();
       each.increment(error))
    ++count;
  return count;
}

int count_gpu_files() {
  int count = 0;
  for (int number = 0; number < 64; ++number)
    count += access(("/dev/nvidia" + std::to_string(number)).c_str(), F_OK) == 0;
  return count;
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  ..."
std::string nvidia_driver() {
  std::istringstream words(read_text("/proc/driver/nvidia/version"));
  for (std::string word; words >> word;)
    if (word.find_first_not_of("0123456789.") == std::string::npos && word.find('.') != std::string::npos) return word;
  return "";
}

}  // namespace

std::string read_text(const std::string& path) { return read_file_if_there(path, 64 << 20).value_or(""); }

Room room_of(const std::string& path) {
  struct statvfs info = {};
  if (statvfs(path.c_str(), &info) != 0) return {};
  const auto bytes = [&](fsblkcnt_t blocks) {
    return static_cast<int64_t>(blocks) * static_cast<int64_t>(info.f_frsize);
  };
  return {bytes(info.f_blocks), bytes(info.f_bavail), static_cast<int64_t>(info.f_files),
          static_cast<int64_t>(info.f_favail)};
}

std::string variable(const Machine& machine, const std::string& name) {
  const auto found = machine.environment.find(name);
  return found == machine.environment.end() ? "" : found->second;
}

Machine detect_machine() {
  Machine machine;
  machine.host = host_name();
  machine.addresses = addresses_of(machine.host);
  for (char** each = environ; *each; ++each) {
    const std::string text = *each;
    machine.environment[text.substr(0, text.find('='))] = text.substr(std::min(text.size(), text.find('=') + 1));
  }
  machine.maps = read_text("/proc/self/maps");
  machine.mounts = read_text("/proc/self/mounts");
  machine.limits = {{"open_files", limit_of(RLIMIT_NOFILE)}, {"processes", limit_of(RLIMIT_NPROC)},
                    {"stack", limit_of(RLIMIT_STACK)},       {"locked_memory", limit_of(RLIMIT_MEMLOCK)},
                    {"file_size", limit_of(RLIMIT_FSIZE)},   {"address_space", limit_of(RLIMIT_AS)}};
  machine.has_shared_memory = access("/dev/shm", W_OK | X_OK) == 0;
  machine.shared_memory = room_of("/dev/shm");
  std::istringstream(read_text("/proc/loadavg")) >> machine.load;
  machine.cores = training::usable_cores();
  machine.core_quota = core_quota();
  machine.memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  machine.memory_limit = memory_limit(machine.memory);
  machine.has_infiniband = count_entries("/sys/class/infiniband") > 0;
  machine.nvidia_driver = nvidia_driver();
  machine.nvidia_gpus = std::max(count_entries("/proc/driver/nvidia/gpus"), count_gpu_files());
  machine.cuda_of_driver = machine.nvidia_gpus > 0 ? cuda_version("libcuda.so.1", "cuDriverGetVersion") : 0;
  machine.cuda_of_runtime = cuda_version(nullptr, "cudaRuntimeGetVersion");
  return machine;
}

}  // namespace muster::launcher::doctor
