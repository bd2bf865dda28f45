#include "launcher/slurm/submission.h"

#include <memory>

#include "launcher/commands/commands.h"

namespace muster::launcher {

void add_submit_command(CLI::App& parent) {
  auto options = std::make_shared<SubmitOptions>();
  auto* command = parent.add_subcommand(
      "submit", "Queue a Slurm job that trains, saves in time, and queues itself again until the run is finished");
  command->add_option("--nodes", options->nodes, "Nodes: 2, or 1-2 for as many as are free (default: 1)");
  command->add_option("--gpus-per-node", options->gpus_per_node, "GPUs of each node")->check(CLI::PositiveNumber);
  command->add_option("--ranks-per-node", options->ranks_per_node, "Ranks on each node (default: one per GPU, else 1)")
      ->check(CLI::PositiveNumber);
  command->add_option("--cpus-per-task", options->cpus_per_task, "Cores of each rank")->check(CLI::PositiveNumber);
  command->add_option("--time", options->time,
                      "Time limit of each start, as Slurm writes it: 8:00:00, 2-00:00:00, 90 (minutes)");
  command->add_option("--partition", options->partition, "Partition");
  command->add_option("--account", options->account, "Account");
  command->add_option("--qos", options->qos, "Quality of service");
  command->add_option("--constraint", options->constraint, "Kind of node");
  command->add_option("--job-name", options->job_name, "Name in the queue (default: the experiment's)");
  command->add_option("--array", options->array, "A job array, e.g. 0-4; {task} in train's words is the task's number");
  command
      ->add_option("--sbatch", options->sbatch, "Any other option of sbatch, e.g. --sbatch=\"--mem=64G\" (repeatable)")
      ->allow_extra_args(false);
  command
      ->add_option("--grace", options->grace_seconds,
                   "Seconds before the time limit at which the run saves and stops (default: 120)")
      ->check(CLI::Range(1, 65535));
  command
      ->add_option("--max-restarts", options->max_restarts,
                   "Queue again at most so often in a row without a newer checkpoint (default: 3)")
      ->check(CLI::NonNegativeNumber);
  command->add_option(
      "--site", options->site,
      "Site profile: a file, or NAME of ~/.config/muster/NAME.txtpb (default: MUSTER_SITE, else site.txtpb there)");
  command->add_option("--template", options->template_file, "Another job script to fill in than muster's own");
  command->add_flag("--dry-run", options->dry_run, "Check everything, print the job script, submit nothing");
  command->prefix_command();
  command->footer(
      "Example: muster submit --nodes 2 --gpus-per-node 4 --time 8:00:00 train experiments/quickstart.txtpb");
  command->callback([options, command] {
    options->command = command->remaining();
    submit(*options);
  });
}

}  // namespace muster::launcher
