#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "distributed/mpi.h"

namespace muster::distributed {
namespace {

int number_in_environment(const char* name) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : 0;
}

// The step of `srun --pty bash` may have any number of tasks: what its user types is no rank of it.
bool is_typed_into_a_shell() {
  return std::getenv("SLURM_PTY_PORT") && number_in_environment("SLURM_PROCID") == 0 &&
         number_in_environment("SLURM_TASK_PID") != getpid();
}

struct Promise {
  const char* starter;
  int ranks;
};

// mpirun's word counts first: inside a Slurm job it starts its own daemons by srun, one task per node.
Promise promise() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
    if (const int ranks = number_in_environment(name)) return {"mpirun", ranks};
  return {"srun", is_typed_into_a_shell() ? 1 : number_in_environment("SLURM_STEP_NUM_TASKS")};
}

}  // namespace

int expected_world_size() { return std::max(1, promise().ranks); }

std::unique_ptr<Communicator> connect() {
  const auto [starter, promised] = promise();
  if (promised <= 1) return make_single_process_communicator();
  // Open MPI would end in its own words, those of its builder, on every rank.
  if (starter == std::string("srun") && !std::getenv("PMIX_RANK"))
    throw Error(ExitCode::kUsage,
                "srun started " + std::to_string(promised) +
                    " processes without PMIx, so that each would train a model of its own. Add --mpi=pmix "
                    "(srun --mpi=list shows what your Slurm offers).");
  auto communicator = make_mpi_communicator();
  if (communicator->size() != promised)
    throw Error(ExitCode::kUsage,
                std::string(starter) + " started " + std::to_string(promised) + " processes, but MPI sees only " +
                    std::to_string(communicator->size()) +
                    ": each would train a model of its own. Start them by the mpirun, or the PMIx, that belongs to the "
                    "Open MPI that muster was built with.");
  return communicator;
}

}  // namespace muster::distributed
