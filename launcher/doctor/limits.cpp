#include "launcher/doctor/limits.h"

#include <algorithm>
#include <cstdio>

namespace muster::launcher::doctor {
namespace {

struct Bound {
  const char* limit;
  const char* name;    // as "open files"
  const char* option;  // of ulimit
  int64_t fail_below, warn_below;
  bool bytes;
  const char* why;
};
constexpr int64_t kMega = 1000000;
const Bound kBounds[] = {
    {"open_files", "open files", "-n", 256, 1024, false, "connections between ranks, data and checkpoint files"},
    {"processes", "processes and threads", "-u", 64, 1024, false, "ranks and their threads"},
    {"stack", "stack of a thread", "-s", kMega / 2, 2 * kMega, true, "libraries put arrays there"},
    {"file_size", "size of a file", "-f", 100 * kMega, 10000 * kMega, true, "checkpoints and predictions"},
    {"address_space", "address space", "-v", 4000 * kMega, 64000 * kMega, true,
     "LibTorch reserves far more than it uses"},
};
constexpr double kSharedMemoryNeeded = 16e6, kSharedMemoryWished = 64e6;
constexpr double kMemoryWished = 2e9;

std::string number_text(int64_t value, bool bytes) {
  return value < 0 ? "unlimited" : bytes ? size_text(static_cast<double>(value)) : std::to_string(value);
}

Finding check_bound(const Machine& machine, const Bound& bound) {
  const Limit limit = machine.limits.at(bound.limit);
  Finding finding{bound.limit, State::kOk, number_text(limit.soft, bound.bytes), "", "", "", -1, {}};
  finding.figures = {{"soft", limit.soft}, {"hard", limit.hard}};
  finding.expected = "at least " + number_text(bound.warn_below, bound.bytes) + " " + bound.name + ": " + bound.why;
  if (limit.soft < 0 || limit.soft >= bound.warn_below) return finding;
  finding.state = limit.soft < bound.fail_below ? State::kFailed : State::kWarning;
  finding.fix = limit.hard < 0 || limit.hard >= bound.warn_below
                    ? std::string("ulimit -S ") + bound.option + (limit.hard < 0 ? " unlimited" : " hard") +
                          ", before muster and in the job's script too"
                    : "ask the administrator to raise the hard limit (/etc/security/limits.conf, or LimitNOFILE and "
                      "the like of slurmd's service)";
  return finding;
}

Finding check_locked_memory(const Machine& machine) {
  const Limit limit = machine.limits.at("locked_memory");
  Finding finding{"locked_memory", State::kOk, number_text(limit.soft, true), "", "", "", -1, {}};
  finding.figures = {{"soft", limit.soft}, {"hard", limit.hard}, {"infiniband", machine.has_infiniband}};
  finding.expected = machine.has_infiniband ? "unlimited: this machine has InfiniBand, whose buffers are locked"
                                            : "at least 64 KB; unlimited where ranks talk over InfiniBand or RoCE";
  if (limit.soft < 0) return finding;
  if (machine.has_infiniband)
    finding.state = State::kFailed;
  else if (limit.soft < 64000)
    finding.state = State::kWarning;
  if (finding.state != State::kOk)
    finding.fix = limit.hard < 0 ? "ulimit -l unlimited, before muster and in the job's script too"
                                 : "ask the administrator for \"* soft memlock unlimited\" and \"* hard memlock "
                                   "unlimited\" in /etc/security/limits.conf and "
                                   "LimitMEMLOCK=infinity in slurmd's service";
  return finding;
}

Finding check_shared_memory(const Machine& machine) {
  Finding finding{"shared_memory", State::kOk, "", "", "", "", -1, {}};
  const auto& room = machine.shared_memory;
  finding.figures = {{"size_bytes", room.bytes}, {"free_bytes", room.free_bytes}};
  finding.found = size_text(static_cast<double>(room.free_bytes)) + " of " +
                  size_text(static_cast<double>(room.bytes)) + " free in /dev/shm";
  finding.expected = "at least " + size_text(kSharedMemoryWished) +
                     " free: ranks of one machine pass data through it, some 4 MB each (NCCL 10 MB)";
  if (!machine.has_shared_memory) {
    finding.state = State::kFailed;
    finding.found = "/dev/shm is missing, or you may not write to it";
    finding.fix = "mount a tmpfs there: mount -t tmpfs -o mode=1777 tmpfs /dev/shm";
    return finding;
  }
  if (static_cast<double>(room.free_bytes) >= kSharedMemoryWished) return finding;
  finding.state = static_cast<double>(room.free_bytes) < kSharedMemoryNeeded ? State::kFailed : State::kWarning;
  finding.fix =
      static_cast<double>(room.bytes) < kSharedMemoryWished
          ? "make it larger: docker run --shm-size=1g (or --ipc=host), or as root: mount -o remount,size=1g /dev/shm"
          : "remove what dead jobs have left in it: ls -l /dev/shm";
  return finding;
}

Finding check_cores(const Machine& machine) {
  Finding finding{"cores", State::kOk, std::to_string(machine.cores) + " usable", "", "", "", -1, {}};
  finding.figures = {{"usable", machine.cores}, {"quota", machine.core_quota}};
  finding.expected =
      "no quota below the number of cores: ranks start as many threads as they see cores, and are then held up "
      "together";
  if (machine.core_quota == 0) return finding;
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", machine.core_quota);
  finding.found += std::string(", but the container or job may use only ") + text + " of them at a time";
  if (machine.core_quota >= machine.cores - 0.01) return finding;
  finding.state = State::kWarning;
  finding.fix = "start at most " + std::to_string(std::max(1, static_cast<int>(machine.core_quota))) +
                " ranks with training.threads: 1, or raise the quota (docker run --cpus, the job's --cpus-per-task)";
  return finding;
}

Finding check_memory(const Machine& machine) {
  const int64_t usable = machine.memory_limit > 0 ? machine.memory_limit : machine.memory;
  Finding finding{"memory", State::kOk, size_text(static_cast<double>(usable)), "at least 2 GB", "", "", -1, {}};
  if (machine.memory_limit > 0)
    finding.found +=
        " of the machine's " + size_text(static_cast<double>(machine.memory)) + " (limit of the container or job)";
  finding.figures = {{"machine_bytes", machine.memory}, {"limit_bytes", machine.memory_limit}};
  if (static_cast<double>(usable) >= kMemoryWished) return finding;
  finding.state = State::kWarning;
  finding.fix =
      "ask for more: Slurm --mem, docker run --memory; each rank holds LibTorch (0.4 GB), the model and its batch";
  return finding;
}

Finding check_load(const Machine& machine) {
  char text[64];
  std::snprintf(text, sizeof text, "%.1f for %d cores", machine.load, machine.cores);
  Finding finding{"load", State::kOk, text, "below the number of cores", "", "", -1, {{"one_minute", machine.load}}};
  if (machine.load < machine.cores + 1) return finding;
  finding.state = State::kWarning;
  finding.fix =
      "others compute here (top shows who): times below are worse than they could be; take another machine, or wait";
  return finding;
}

Finding check_host_name(const Machine& machine, bool several_hosts) {
  Finding finding{"host_name", State::kOk, machine.host, "", "", "", -1, {}};
  finding.expected = "a name that resolves to an address that the other machines reach";
  finding.figures["addresses"] = machine.addresses;
  bool outside = false;
  std::string list;
  for (const auto& address : machine.addresses) {
    if (list.find(address) != std::string::npos) continue;
    list += (list.empty() ? "" : ", ") + address;
    outside |= address.rfind("127.", 0) != 0 && address != "::1";
  }
  finding.found += machine.addresses.empty() ? " resolves to no address" : " is " + list;
  if (outside) return finding;
  if (machine.addresses.empty() || several_hosts) {
    finding.state = State::kWarning;
    finding.fix = "give " + machine.host + " its address in /etc/hosts or DNS" +
                  (machine.addresses.empty() ? "; until then MPI may wait long for names"
                                             : ", not a loopback one, which other machines take for themselves");
  } else {
    finding.found += " (a loopback address: enough on one machine)";
  }
  return finding;
}

}  // namespace

std::vector<Finding> check_limits(const Machine& machine, bool several_hosts) {
  std::vector<Finding> findings;
  for (const auto& bound : kBounds) findings.push_back(check_bound(machine, bound));
  for (auto& finding : {check_locked_memory(machine), check_shared_memory(machine), check_cores(machine),
                        check_memory(machine), check_load(machine), check_host_name(machine, several_hosts)})
    findings.push_back(finding);
  for (auto& finding : findings) finding.host = machine.host;
  return findings;
}

}  // namespace muster::launcher::doctor
