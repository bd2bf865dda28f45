#include "launcher/launch/backend_errors.h"

namespace muster::launcher {

std::string starter_trouble(const std::string& words, const JobCommand& job) {
  const auto says = [&](const char* phrase) { return words.find(phrase) != std::string::npos; };
  const std::string ranks = std::to_string(job.ranks) + (job.ranks == 1 ? " rank" : " ranks");
  if (says("not enough slots available"))
    return "mpirun has not enough slots for " + ranks +
           " (its message is above). Give fewer ranks (-n) or more slots (--hosts a:4,b:4), or add --oversubscribe "
           "to let ranks take turns on the cores";
  if (says("unable to reliably start one or more daemons") || says("ORTE does not know how to route"))
    return "mpirun could not start its daemon on another host (its message is above). Each host must be reached by ssh "
           "without a password, have the same "
           "Open MPI under the same path, and be able to connect back: try `ssh HOST true`, then `muster doctor "
           "--hosts ...`";
  if (says("More processors requested than permitted") || says("Requested node configuration is not available"))
    return "Slurm has not enough room in this allocation for " + ranks +
           " (srun's message is above). Give fewer ranks (-n), ask for a larger allocation, or add "
           "--oversubscribe";
  if (says("Invalid MPI plugin") || says("invalid MPI type"))
    return "this Slurm offers no PMIx (srun's message is above). Use --starter mpirun";
  return "";
}

bool has_lost_a_host(const std::string& words) {
  return words.find("ORTE has lost communication with a remote daemon") != std::string::npos;
}

}  // namespace muster::launcher
