#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/process.h"
#include "distributed/cuda_devices.h"
#include "launcher/doctor/check.h"

namespace muster::launcher::doctor {

// A limit of this process; -1: none.
struct Limit {
  int64_t soft = -1;
  int64_t hard = -1;
};

// The file system that a path is on, as /proc/self/mounts lists it.
struct Mount {
  std::string type, source, point, options;
};
Mount mount_of(const std::string& path, const std::string& mounts);

// One library that this process has loaded.
struct Version {
  std::string library, built_with, loaded;  // built_with: empty where the library does not say
};

// Everything that the checks of one machine know about it. Checks are functions of this, so that tests can make up
// any machine.
struct Machine {
  std::string host;
  std::vector<std::string> addresses;  // of that name; empty when it does not resolve
  std::map<std::string, std::string> environment;
  std::vector<std::string> libraries;   // paths of those that are loaded into this process
  std::string mounts;                   // /proc/self/mounts
  std::map<std::string, Limit> limits;  // open_files, processes, stack, locked_memory, file_size, address_space
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

  std::string variable(const std::string& name) const;  // of the environment; empty: not set
};
std::vector<Version> loaded_versions();
Machine detect_machine(bool several_hosts);

// "versions" to "cuda_visible": of every machine of the job.
extern const std::vector<Check<const Machine>> kMachineChecks;

// What the ranks are started with.
struct Start {
  Machine machine;
  std::string directory;            // where ranks will try files
  std::error_code directory_error;  // why it is not there
  std::string mpirun, srun;         // paths; empty: there is none
  bool needs_mpirun = false, needs_srun = false;
  std::string mpi_library;  // that this process has loaded
  // Runs a program and returns what it answers.
  std::function<ProcessResult(const std::vector<std::string>& command)> ask;
};

// "mpirun", "srun", "directory" and "free_space": only where the doctor is started.
extern const std::vector<Check<const Start>> kStartChecks;
void check_mpirun(const Start& start, Finding& finding);
void check_srun(const Start& start, Finding& finding);

// Why ranks did not start (not connected), or ended early, from what mpirun, ssh and ranks wrote to standard error:
// what it means and how to fix it. `command`: as a person would repeat it.
Finding explain_end(const ProcessResult& end, bool connected, const std::string& command);
// The message of job_command() as a finding.
Finding explain_refusal(const std::string& message);
Failure unusable_directory(const std::string& path, const std::error_code& error);

}  // namespace muster::launcher::doctor
