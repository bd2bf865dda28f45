#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launcher/commands/commands.h"
#include "launcher/commands/start_options.h"
#include "launcher/launch/launch.h"

namespace muster::launcher {

void add_launch_command(CLI::App& parent) {
  static const std::map<std::string, LaunchBackend> starters{
      {"auto", LaunchBackend::kAuto}, {"mpirun", LaunchBackend::kMpirun}, {"srun", LaunchBackend::kSrun}};
  struct Options : LaunchOptions {
    std::string starter = "auto";
  };
  auto options = std::make_shared<Options>();
  auto* command = parent.add_subcommand(
      "launch", "Start a muster command on several ranks: of this machine, of several hosts, of a Slurm allocation");
  auto& job = options->job;
  add_start_options(*command, job,
                    "one per GPU, else per CPU socket; the slots of the hosts; the tasks of the allocation");
  command
      ->add_option("--bind", job.bind,
                   "Cores of a rank: numa (those of its NUMA node; default), core (some of its own) or none")
      ->check(CLI::IsMember({"numa", "core", "none"}));
  command
      ->add_option("--threads", job.threads,
                   "Threads of each rank (default: OMP_NUM_THREADS, else its share of the cores)")
      ->check(CLI::Range(1, 4096));
  command
      ->add_option("--starter", options->starter,
                   "auto (default: srun inside a Slurm allocation, else mpirun), mpirun or srun")
      ->check(CLI::IsMember({"auto", "mpirun", "srun"}));
  command
      ->add_option("--max-restarts", options->max_restarts,
                   "train, resume, search run, study: start again up to N times after a crash, a lost rank or a failed "
                   "disk, from the newest checkpoint (default: 0)")
      ->check(CLI::Range(0, 1000000));
  command->add_flag("--dry-run", options->dry_run, "Print the command and stop");
  command->prefix_command();
  command->footer("Example: muster launch -n 2 train experiments/quickstart.txtpb");
  command->callback([options, command] {
    options->job.starter = starters.at(options->starter);
    options->job.command = command->remaining();
    launch(*options);
  });
}

}  // namespace muster::launcher
