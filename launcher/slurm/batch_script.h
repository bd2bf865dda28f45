#pragma once

#include <string>
#include <vector>

namespace muster::launcher {

// A job for sbatch. Empty texts and zeros: left to Slurm.
struct BatchJob {
  std::string name;
  std::string nodes = "1";  // "2", or "1-2": as many as there are
  int ranks_per_node = 1;
  int gpus_per_node = 0, cpus_per_task = 0;
  std::string time, partition, account, qos, constraint;
  std::string array;                // "0-4"; then {task} in `run_directory` and `train` is the task's number
  std::vector<std::string> sbatch;  // further options, as they are
  std::vector<std::string> modules, setup;
  std::string mpi = "pmix";
  int grace_seconds = 120;
  int max_restarts = 3;
  std::string directory;           // where the job runs; relative paths in `train` count from there
  std::string program;             // muster, absolute
  std::string run_directory;       // absolute
  std::vector<std::string> train;  // muster's arguments without --run-dir and --resume
};

// The job script: `script_template` with its @FIELDS@ filled in; lines with nothing but an empty field are left out.
// Pure. Throws Error(kUsage) when the template has an unknown field, or lacks one that every job needs.
std::string batch_script(const BatchJob& job, const std::string& script_template);

// The template that comes with muster (cluster/slurm.sbatch.in).
std::string own_template();

// `text` with {task} replaced.
std::string for_task(const std::string& text, const std::string& task);

// Numbers of "0-4", "1,3,7" or "0-15:4%2". Throws Error(kUsage).
std::vector<int> tasks_of_array(const std::string& array);

}  // namespace muster::launcher
