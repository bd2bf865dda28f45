#include "launcher/slurm/this_job.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

namespace muster::launcher {

std::string variable(const char* name) { return std::getenv(name) ? std::getenv(name) : ""; }

run::JobIdentity this_job() {
  if (const auto id = variable("SLURM_JOB_ID"); !id.empty()) {
    const auto cluster = variable("SLURM_CLUSTER_NAME");
    return {fmt::format("Slurm job {}{}{}", id, cluster.empty() ? "" : " of ", cluster),
            std::atoll(variable("SLURM_RESTART_COUNT").c_str())};
  }
  if (!variable("OMPI_COMM_WORLD_SIZE").empty()) return {fmt::format("mpirun {}", getppid()), 0};
  return {fmt::format("process {}", getpid()), 0};
}

std::string slurm_job_id() {
  const std::string array = variable("SLURM_ARRAY_JOB_ID"), task = variable("SLURM_ARRAY_TASK_ID");
  return array.empty() || task.empty() ? variable("SLURM_JOB_ID") : fmt::format("{}_{}", array, task);
}

ProcessResult run_slurm(const std::vector<std::string>& arguments) {
  ProcessOptions options;
  options.blocked = {SIGUSR1, SIGUSR2};
  return run_process(arguments, options);
}

}  // namespace muster::launcher
