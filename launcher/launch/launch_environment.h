#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/process.h"

namespace muster::launcher {

// The Slurm allocation that a process runs in, from its environment.
struct SlurmAllocation {
  int nodes = 1;
  int tasks = 0;             // asked for; 0: not given
  int cpus = 1;              // of all nodes
  int least_cpus = 1;        // of the node that has fewest
  int gpus_per_node = 0;     // 0: none, or not given
  bool within_step = false;  // this process runs within a step: `srun --pty bash`, the shell of salloc
};

// What this machine offers for starting ranks. Plain data: tests make up their own.
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

// What `srun --mpi=list` has answered.
struct SrunMpi {
  int exit_code = 0;  // 127: there is no srun
  std::string text;   // one that failed: why

  // Whether srun can start MPI programs by --mpi=`kind` ("pmix", "pmix_v4", "pmi2").
  bool offers(const std::string& kind) const;
};
SrunMpi srun_mpi(const ProcessResult& list);
// Runs it. srun: a name or a path.
SrunMpi ask_srun_for_mpi(const std::string& srun = "srun");

// All variables of this process.
std::map<std::string, std::string> process_environment();

// Asks this machine: PATH, hwloc, CUDA, the environment, and, inside an allocation, `srun --mpi=list`.
LaunchEnvironment detect_launch_environment();

// The allocation that `environment` describes, if any.
std::optional<SlurmAllocation> slurm_allocation(const std::map<std::string, std::string>& environment);

}  // namespace muster::launcher
