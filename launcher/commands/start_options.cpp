#include "launcher/commands/start_options.h"

namespace muster::launcher {

void add_start_options(CLI::App& command, JobRequest& job, const std::string& default_ranks) {
  // A shell's empty variable would otherwise be a job on this machine.
  const auto not_empty = [](const std::string& text) {
    return text.empty() ? std::string("it is empty; leave it out for this machine") : "";
  };
  command.add_option("-n,--ranks", job.ranks, "Number of ranks (default: " + default_ranks + ")")
      ->check(CLI::Range(1, 1000000));
  auto* hosts =
      command.add_option("--hosts", job.hosts, "Hosts and how many ranks each may get, e.g. a:4,b:4")->check(not_empty);
  command.add_option("--hostfile", job.hostfile, "The same as a file of lines such as: a slots=4")
      ->check(not_empty)
      ->excludes(hosts);
  command.add_flag("--oversubscribe", job.oversubscribe, "Allow more ranks than cores, or slots");
  command.add_flag("--allow-run-as-root", job.allow_run_as_root,
                   "Let mpirun run as root (sensible in a container only)");
}

}  // namespace muster::launcher
