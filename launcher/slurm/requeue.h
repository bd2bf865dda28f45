#pragma once

#include <string>

namespace muster::launcher {

// Records that the job of this process starts. Throws Error(kUsage) when srun cannot start MPI programs by
// --mpi=`mpi`.
void begin_job(const std::string& run_directory, const std::string& mpi);

// Records that it has ended, and requeues it when another start can make progress. Returns the exit code for the job: 0
// when the run is finished or requeued.
int end_job(const std::string& run_directory, int exit_code, int max_restarts);

}  // namespace muster::launcher
