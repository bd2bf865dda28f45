#include "launcher/launch/launch_environment.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "base/host.h"
#include "distributed/affinity.h"
#include "distributed/cuda_devices.h"

extern char** environ;

namespace muster::launcher {
namespace {

using Environment = std::map<std::string, std::string>;

std::string find_program(const std::string& program, const Environment& environment) {
  if (program.find('/') != std::string::npos) return access(program.c_str(), X_OK) == 0 ? program : "";
  const auto path = environment.find("PATH");
  std::istringstream folders(path == environment.end() ? "" : path->second);
  for (std::string folder; std::getline(folders, folder, ':');)
    if (!folder.empty() && access((folder + "/" + program).c_str(), X_OK) == 0) return folder + "/" + program;
  return "";
}

std::string value_of(const Environment& environment, const std::string& name) {
  const auto found = environment.find(name);
  return found == environment.end() ? "" : found->second;
}

// Slurm's short form of a list: "4(x2),3" is 4, 4, 3.
std::vector<int> numbers_of(const std::string& text) {
  std::vector<int> numbers;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int value = 0, times = 1;
    if (std::sscanf(part.c_str(), "%d(x%d)", &value, &times) < 1) return {};
    numbers.insert(numbers.end(), static_cast<size_t>(std::clamp(times, 1, 100000)), value);
  }
  return numbers;
}

// "4", "h100:4"
int number_at_end(const std::string& text) { return std::atoi(text.substr(text.rfind(':') + 1).c_str()); }

std::string find_remote_shell(const Environment& environment) {
  std::string agent = value_of(environment, "OMPI_MCA_plm_rsh_agent");
  if (!agent.empty()) return find_program(agent.substr(0, agent.find(' ')), environment);
  agent = find_program("ssh", environment);
  return agent.empty() ? find_program("rsh", environment) : agent;
}

int counted(const std::vector<distributed::CpuSet>& sets, const distributed::CpuSet& allowed) {
  return static_cast<int>(std::count_if(
      sets.begin(), sets.end(), [&](const auto& set) { return !distributed::common_cpus(set, allowed).empty(); }));
}

}  // namespace

std::optional<SlurmAllocation> slurm_allocation(const Environment& environment) {
  if (value_of(environment, "SLURM_JOB_ID").empty()) return std::nullopt;
  const auto number = [&](const char* name) { return std::atoi(value_of(environment, name).c_str()); };
  SlurmAllocation allocation;
  allocation.within_step = !value_of(environment, "SLURM_STEP_ID").empty();
  allocation.nodes = std::max(1, number("SLURM_JOB_NUM_NODES"));
  // A shell's step says 1, whatever the job has.
  allocation.tasks = number("SLURM_NTASKS");
  if (allocation.within_step && allocation.tasks == 1) allocation.tasks = 0;
  auto cpus = numbers_of(value_of(environment, "SLURM_JOB_CPUS_PER_NODE"));
  if (cpus.empty()) cpus.push_back(std::max(1, number("SLURM_CPUS_ON_NODE")));
  allocation.cpus = 0;
  for (const int each : cpus) allocation.cpus += each;
  allocation.least_cpus = *std::min_element(cpus.begin(), cpus.end());
  allocation.gpus_per_node = number("SLURM_GPUS_ON_NODE");
  if (allocation.gpus_per_node == 0)
    allocation.gpus_per_node = number_at_end(value_of(environment, "SLURM_GPUS_PER_NODE"));
  return allocation;
}

bool SrunMpi::offers(const std::string& kind) const {
  std::string blanks = text;
  std::replace(blanks.begin(), blanks.end(), ',', ' ');  // between versions of a plugin
  std::istringstream words(blanks);
  for (std::string word; exit_code == 0 && words >> word;)
    if (word == kind) return true;
  return false;
}

SrunMpi srun_mpi(const ProcessResult& list) {
  SrunMpi offered{list.code, list.answer()};
  if (list.code != 0 || !offered.text.empty()) return offered;
  ProcessResult on_errors = list;  // where Slurm before 21.08 writes it
  on_errors.output = list.errors;
  return {list.code, on_errors.answer()};
}

SrunMpi ask_srun_for_mpi(const std::string& srun) {
  ProcessOptions options;
  options.blocked = stop_signals();  // Slurm sends those to the whole process group
  options.time_limit = 60;
  return srun_mpi(run_process({srun, "--mpi=list"}, options));
}

Environment process_environment() {
  Environment variables;
  for (char** entry = environ; *entry; ++entry)
    if (const char* equals = std::strchr(*entry, '='))
      variables[std::string(*entry, static_cast<size_t>(equals - *entry))] = equals + 1;
  return variables;
}

LaunchEnvironment detect_launch_environment() {
  LaunchEnvironment here;
  here.environment = process_environment();
  here.program = std::filesystem::read_symlink("/proc/self/exe").string();
  here.mpirun = find_program("mpirun", here.environment);
  here.srun = find_program("srun", here.environment);
  here.remote_shell = find_remote_shell(here.environment);
  here.host = host_name();
  here.is_root = geteuid() == 0;
  const distributed::Machine machine;
  const auto allowed = machine.allowed();
  here.cpus = static_cast<int>(allowed.size());
  here.cores = counted(machine.topology().cores, allowed);
  here.packages = counted(machine.topology().packages, allowed);
  here.gpus = static_cast<int>(distributed::visible_gpus().gpus.size());
  here.slurm = slurm_allocation(here.environment);
  if (here.slurm && !here.srun.empty()) here.srun_speaks_pmix = ask_srun_for_mpi(here.srun).offers("pmix");
  return here;
}

}  // namespace muster::launcher
