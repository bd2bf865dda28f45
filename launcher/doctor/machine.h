#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <system_error>
#include <vector>

#include "base/files.h"
#include "distributed/cuda_devices.h"
#include "launcher/doctor/check.h"
#include "launcher/launch/launch_environment.h"

namespace muster::launcher::doctor {

// A limit of this process; -1: none.
struct Limit {
  int64_t soft = -1, hard = -1;
};

// One library that this process has loaded.
struct Version {
  std::string library, built_with, loaded;  // built_with: empty where the library does not say
};
std::vector<Version> loaded_versions();

// Everything that the checks of one machine know about it. Checks are functions of this, so that tests can make up
// any machine.
struct Machine {
  std::string host;
  std::vector<std::string> addresses;  // of that name; empty when it does not resolve
  std::map<std::string, std::string> environment;
  std::vector<std::string> libraries;   // paths of those that are loaded into this process
  std::map<std::string, Limit> limits;  // by the names of their checks
  bool has_shared_memory = false;       // /dev/shm is there
  Space shared_memory;
  double load = 0;           // of the last minute
  int cores = 1;             // in this process's affinity mask
  double core_quota = 0;     // of its control groups, in cores; 0: none
  int64_t memory = 0;        // bytes, of the machine
  int64_t memory_limit = 0;  // of its control groups; 0: none
  bool has_infiniband = false;
  std::vector<Version> versions;
  bool built_with_cuda = false;      // this program
  distributed::VisibleGpus visible;  // to CUDA
  std::string nvidia_driver;         // version of the kernel's module; empty: none
  int nvidia_gpus = 0;               // that the kernel has
  int cuda_of_driver = 0;            // the highest version that it supports, 1000 x major + 10 x minor; 0: unknown
  int cuda_of_runtime = 0;           // of the libcudart in this process
  bool several_hosts = false;        // the job spans machines, which must find each other
};
Machine detect_machine(bool several_hosts);

// "versions" to "cuda_visible": of every machine of the job.
extern const std::vector<Check<const Machine>> kMachineChecks;

// "4.1.4" of "Open MPI v4.1.4, package ..."; empty: there is none.
std::string version_in(const std::string& text);

// What the ranks are started with.
struct Start {
  LaunchEnvironment here;
  bool alone = false;  // one rank, without mpirun or srun
  bool several_hosts = false;
  std::string mpi_library;          // that this process has loaded
  std::string directory;            // where ranks will try files
  std::error_code directory_error;  // why no files can be made there
  std::string mounts;               // /proc/self/mounts
  // Runs a program and returns what it answers.
  std::function<ProcessResult(const std::vector<std::string>& command)> ask;
};

// "mpirun", "srun", "directory" and "free_space": only where the doctor is started.
extern const std::vector<Check<const Start>> kStartChecks;

// The type of the file system that a path is on, where it is mounted and its options, by /proc/self/mounts.
struct Mount {
  std::string type, source, point, options;
};
Mount mount_of(const std::string& path, const std::string& mounts);

// Why ranks did not start (not connected), or ended early, from what mpirun, ssh and ranks wrote to standard error:
// what it means and how to fix it. `command`: as a person would repeat it.
Finding explain_end(const ProcessResult& end, bool connected, const std::string& command);
// The message of job_command() as a finding.
Finding explain_refusal(const std::string& message);

}  // namespace muster::launcher::doctor
