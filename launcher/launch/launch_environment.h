#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace muster::launcher {

// The Slurm allocation that a process runs in, as its environment tells.
struct SlurmAllocation {
  int nodes = 1;
  int tasks = 0;             // that were asked for; 0: not said
  int cpus = 1;              // of all nodes
  int least_cpus = 1;        // of the node that has fewest
  int gpus_per_node = 0;     // 0: none, or not said
  bool within_step = false;  // this process is itself (in) a task of a step: `srun --pty bash`, the shell of salloc
};

// What is here for starting ranks with. Plain data: tests make up their own.
struct LaunchEnvironment {
  std::string program;       // this muster
  std::string mpirun, srun;  // paths; empty: not on the PATH
  bool srun_speaks_pmix = false;
  std::string remote_shell;  // the program that mpirun reaches other hosts by; empty: missing
  std::string host;          // this machine's name
  bool is_root = false;
  int cpus = 1;      // hardware threads that this process may use
  int cores = 1;     // physical cores that they belong to
  int packages = 1;  // CPU sockets that they belong to
  int gpus = 0;      // that are visible
  std::optional<SlurmAllocation> slurm;
  std::map<std::string, std::string> environment;  // of this process
};

// Asks this machine: PATH, hwloc, CUDA, the environment, and, inside an allocation, `srun --mpi=list`.
LaunchEnvironment detect_launch_environment();

// The allocation that `environment` describes, if any.
std::optional<SlurmAllocation> slurm_allocation(const std::map<std::string, std::string>& environment);

}  // namespace muster::launcher
