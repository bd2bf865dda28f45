#include <memory>
#include <string>
#include <vector>

#include "launcher/commands/commands.h"
#include "launcher/launch/mpirun.h"

namespace muster::launcher {

void add_launch_command(CLI::App& parent) {
  auto options = std::make_shared<LaunchOptions>();
  auto* command = parent.add_subcommand("launch", "Start a muster command on several ranks of this machine by mpirun");
  command->add_option("-n,--ranks", options->ranks, "Number of ranks (default: one per core)")->check(CLI::PositiveNumber);
  command->add_flag("--oversubscribe", options->oversubscribe, "Allow more ranks than cores");
  command->add_flag("--allow-run-as-root", options->allow_run_as_root, "Let mpirun run as root (sensible in a container only)");
  command->add_option("--max-restarts", options->max_restarts,
                      "train, resume: start again up to N times after a crash, a lost rank or a failed disk, from the newest checkpoint (default: 0)")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--dry-run", options->dry_run, "Print the mpirun command and stop");
  command->prefix_command();
  command->footer("Example: muster launch -n 2 train experiments/quickstart.txtpb");
  command->callback([options, command] {
    options->command = command->remaining();
    launch(*options);
  });
}

}  // namespace muster::launcher
