#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace muster::launcher {

// Throws Error(kUsage): the text after "submit: ".
template <typename... Values>
[[noreturn]] void refuse_submission(fmt::format_string<Values...> text, Values&&... values) {
  throw Error(ExitCode::kUsage, "submit: " + fmt::format(text, std::forward<Values>(values)...));
}

// What a user asks for, completed by a site's profile. Empty texts and zeros: left to Slurm.
struct JobSettings {
  std::string nodes;  // "2", or "1-2": as many as there are
  std::string time, partition, account, qos, constraint;
  std::string array;  // "0-4"; then {task} in `run_directory` and `train` is the task's number
  int gpus_per_node = 0, ranks_per_node = 0, cpus_per_task = 0, grace_seconds = 0;
  int max_restarts = 3;
  std::vector<std::string> sbatch;  // further options, as they are
};

// A job for sbatch.
struct BatchJob : JobSettings {
  std::string name;
  std::vector<std::string> modules, setup;
  std::string mpi = "pmix";
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
