#include "launcher/commands/commands.h"

#include <fmt/format.h>
#include <sys/prctl.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "distributed/communicator.h"
#include "distributed/watchdog.h"
#include "launcher/launch/job_command.h"

namespace muster::launcher {

void add_start_options(CLI::App& command, JobRequest& job, const std::string& default_ranks) {
  // An empty shell variable would otherwise mean a job on this machine.
  const auto not_empty = [](const std::string& text) {
    return text.empty() ? std::string("it is empty; leave it out for this machine") : "";
  };
  command.add_option("-n,--ranks", job.ranks, fmt::format("Number of ranks (default: {})", default_ranks))
      ->check(CLI::Range(1, 1000000));
  auto* hosts =
      command.add_option("--hosts", job.hosts, "Hosts and how many ranks each may get, e.g. a:4,b:4")->check(not_empty);
  command.add_option("--hostfile", job.hostfile, "The same as a file of lines such as: a slots=4")
      ->check(not_empty)
      ->excludes(hosts);
  command.add_flag("--oversubscribe", job.oversubscribe, "Allow more ranks than cores or slots");
  command.add_flag("--allow-run-as-root", job.allow_run_as_root,
                   "Let mpirun run as root (sensible in a container only)");
}

void run_job(const std::function<void(distributed::Communicator&)>& work) {
  const auto communicator = distributed::connect();
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
    std::fprintf(stderr, "muster: rank %d of %d: %s%s\n", communicator->rank(), communicator->size(),
                 known ? "" : "internal error: ", error.what());
    communicator->abort(code);
  }
}

}  // namespace muster::launcher
