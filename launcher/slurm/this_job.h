#pragma once

#include <string>
#include <vector>

#include "base/process.h"
#include "core/run/run_lock.h"

namespace muster::launcher {

// The job that this process belongs to: "Slurm job 123 of cluster", "mpirun 4711", or "process 4711". From its
// environment.
run::JobIdentity this_job();

// A variable of this process's environment; empty: it is not set.
std::string variable(const char* name);

// The number of this Slurm job as Slurm's commands take it: "123"; "120_4" for task 4 of an array. Empty: this is no
// Slurm job.
std::string slurm_job_id();

// Runs one of Slurm's commands. Its answer comes even if Slurm asks the whole process group to stop meanwhile: the
// grace time is long enough.
ProcessResult run_slurm(const std::vector<std::string>& arguments);

}  // namespace muster::launcher
