#pragma once

#include <map>
#include <string>
#include <vector>

#include "launcher/launch/launch_environment.h"

namespace muster::launcher {

struct HostSlots {
  std::string host;
  int slots = 1;  // the ranks that it is meant for
};

// "a:4,b:4", where a host without a number has one slot. Throws Error(kUsage), naming the part, for what is not that,
// and for a host that comes twice.
std::vector<HostSlots> parse_hosts(const std::string& text);

// Open MPI's format: a line "a slots=4" per host; # begins a comment. Every line must give slots, because another
// machine's cores cannot be counted from here. Throws Error(kUsage) with file:line, as above.
std::vector<HostSlots> read_hostfile(const std::string& path);

enum class LaunchBackend { kAuto, kMpirun, kSrun };

// What the user asks for.
struct JobRequest {
  int ranks = 0;         // 0: one per task, slot, GPU or CPU socket (job_command() says which)
  std::string hosts;     // "a:4,b:4"; not together with hostfile
  std::string hostfile;  // lines "a slots=4"
  bool oversubscribe = false;
  bool allow_run_as_root = false;
  LaunchBackend backend = LaunchBackend::kAuto;
  std::string bind;          // numa, core or none (distributed/affinity.h); empty: as the environment says, else numa
  int threads = 0;           // of each rank; 0: as the environment says, else its share of the cores
  bool label_output = true;  // let the backend label each line of output with its rank (rank_output.h reads that)
  std::vector<std::string> command;  // of muster, with its arguments: {"train", "experiment.txtpb"}
};

// How ranks are started.
struct JobCommand {
  std::vector<std::string> arguments;              // the backend with its options, the program, its command
  std::map<std::string, std::string> environment;  // to be set for it; the user's own settings take precedence
  std::vector<std::string> removed;                // names to be removed from its environment
  LaunchBackend backend = LaunchBackend::kMpirun;  // never kAuto
  int ranks = 1;
  int hosts = 1;         // that get a rank
  bool is_local = true;  // all on this machine
  int threads = 1;       // of each rank
};

// The command that starts `request.command` on several ranks. Pure, but for reading the hostfile.
//
// Inside a Slurm allocation that is srun --mpi=pmix, else mpirun. Ranks, unless given: the tasks of the allocation, or
// the GPUs or CPU sockets of its nodes; the slots of all hosts; one per visible GPU of this machine, else one per CPU
// socket. Threads of a rank, unless given: OMP_NUM_THREADS of the user, else the cores of a machine divided by the
// ranks on it. Ranks choose their cores themselves (MUSTER_BIND), so backends do not bind.
//
// Throws Error(kUsage), naming the flag that the user may add, where a backend is missing or would refuse: root, more
// ranks than slots, hosts without ssh, srun without PMIx. Never adds an option that overrides one of the backend's
// safeguards.
JobCommand job_command(const JobRequest& request, const LaunchEnvironment& here);

// As a shell reads it: "env A=b mpirun ...".
std::string shell_line(const JobCommand& command);

}  // namespace muster::launcher
