#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launcher/commands/commands.h"
#include "launcher/launch/launch.h"

namespace muster::launcher {

void add_launch_command(CLI::App& parent) {
  static const std::map<std::string, Starter> starters{{"auto", Starter::kAuto}, {"mpirun", Starter::kMpirun}, {"srun", Starter::kSrun}};
  auto options = std::make_shared<LaunchOptions>();
  auto* command = parent.add_subcommand("launch", "Start a muster command on several ranks: of this machine, of several hosts, of a Slurm allocation");
  auto& job = options->job;
  command->add_option("-n,--ranks", job.ranks, "Number of ranks (default: one per GPU, else per CPU socket; the slots of the hosts; the tasks of the allocation)")
      ->check(CLI::PositiveNumber);
  auto* hosts = command->add_option("--hosts", job.hosts, "Hosts and how many ranks each may get, e.g. a:4,b:4");
  command->add_option("--hostfile", job.hostfile, "The same as a file of lines such as: a slots=4")->excludes(hosts);
  command->add_option("--bind", job.bind, "Cores of a rank: numa (those of its NUMA node; default), core (some of its own) or none")->check(CLI::IsMember({"numa", "core", "none"}));
  command->add_option("--threads", job.threads, "Threads of each rank (default: OMP_NUM_THREADS, else its share of the cores)")->check(CLI::PositiveNumber);
  command->add_option("--starter", job.starter, "auto (default: srun inside a Slurm allocation, else mpirun), mpirun or srun")
      ->transform(CLI::CheckedTransformer(starters, CLI::ignore_case).description(""));
  command->add_flag("--oversubscribe", job.oversubscribe, "Allow more ranks than cores, or slots");
  command->add_flag("--allow-run-as-root", job.allow_run_as_root, "Let mpirun run as root (sensible in a container only)");
  command->add_option("--max-restarts", options->max_restarts,
                      "train, resume: start again up to N times after a crash, a lost rank or a failed disk, from the newest checkpoint (default: 0)")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--dry-run", options->dry_run, "Print the command and stop");
  command->prefix_command();
  command->footer("Example: muster launch -n 2 train experiments/quickstart.txtpb");
  command->callback([options, command] {
    options->job.command = command->remaining();
    launch(*options);
  });
}

}  // namespace muster::launcher
