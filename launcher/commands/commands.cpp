#include "launcher/commands/commands.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "base/print.h"
#include "distributed/communicator.h"
#include "distributed/watchdog.h"
#include "launcher/launch/launch.h"

namespace muster::launcher {

void run_job(const std::function<void(distributed::Communicator&)>& work) {
  const auto communicator = distributed::connect();
  if (const char* ready = std::getenv(kReadyFile); ready && communicator->rank() == 0)
    ::close(::open(ready, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  unsetenv(kReadyFile);
  // In a job of several ranks the watchdog notices when mpirun is gone. A single rank must not outlive it either, but
  // may save first.
  if (communicator->size() == 1 && std::getenv("OMPI_COMM_WORLD_SIZE")) prctl(PR_SET_PDEATHSIG, SIGTERM);
  try {
    work(*communicator);
  } catch (const SharedError&) {
    throw;
  } catch (const std::exception& error) {
    if (communicator->size() == 1) throw;
    const auto* known = dynamic_cast<const Error*>(&error);
    const auto code = known ? known->code() : ExitCode::kInternal;
    distributed::yield_to_watchdog(code);
    print_error("muster: rank {} of {}: {}{}\n", communicator->rank(), communicator->size(),
                known ? "" : "internal error: ", error.what());
    communicator->abort(code);
  }
}

}  // namespace muster::launcher
