#include <cstdlib>

#include "distributed/mpi.h"

namespace muster::distributed {
namespace {

int number_in_environment(const char* name) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : 0;
}

}  // namespace

std::unique_ptr<Communicator> connect() {
  // mpirun's word counts first: inside a Slurm job it starts its own daemons by srun, one task per node.
  const char* starter = "mpirun";
  int promised = number_in_environment("OMPI_COMM_WORLD_SIZE");
  if (promised == 0) promised = number_in_environment("PMI_SIZE");
  if (promised == 0) {
    starter = "srun";
    promised = number_in_environment("SLURM_STEP_NUM_TASKS");
  }
  if (promised <= 1) return make_solo_communicator();
  auto communicator = make_mpi_communicator();
  if (communicator->size() != promised)
    throw Error(ExitCode::kUsage, std::string(starter) + " started " + std::to_string(promised) + " processes, but MPI sees only " +
                                      std::to_string(communicator->size()) +
                                      ": each would train a model of its own. With srun add --mpi=pmix (srun --mpi=list shows what "
                                      "your Slurm offers); with mpirun use the one of the Open MPI that muster was built with.");
  return communicator;
}

}  // namespace muster::distributed
