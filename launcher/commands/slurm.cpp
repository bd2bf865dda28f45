#include <fmt/format.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "base/error.h"
#include "core/run/run_directory.h"
#include "launcher/commands/commands.h"
#include "launcher/slurm/requeue.h"
#include "launcher/slurm/submission.h"

namespace muster::launcher {

void add_submit_command(CLI::App& parent) {
  auto options = std::make_shared<SubmitOptions>();
  auto* command = parent.add_subcommand(
      "submit", "Submit a Slurm job that trains, saves in time, and requeues itself until the run is finished");
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
  command->add_option("--array", options->array,
                      "A job array, e.g. 0-4; {task} in train's arguments is the task's number");
  command->add_option("--sbatch", options->sbatch, "Any other sbatch option, e.g. --sbatch=\"--mem=64G\" (repeatable)")
      ->allow_extra_args(false);
  command
      ->add_option("--grace", options->grace_seconds,
                   "Seconds before the time limit at which the run saves and stops (default: 120)")
      ->check(CLI::Range(1, 65535));
  command
      ->add_option("--max-restarts", options->max_restarts,
                   "Requeue at most this many times in a row without a newer checkpoint (default: 3)")
      ->check(CLI::NonNegativeNumber);
  command->add_option(
      "--site", options->site,
      "Site profile: FILE.txtpb, or NAME of ~/.config/muster/NAME.txtpb (default: MUSTER_SITE, else site.txtpb there)");
  command->add_option("--template", options->template_file, "Fill in this job script instead of muster's own");
  command->add_flag("--dry-run", options->dry_run, "Check everything, print the job script, submit nothing");
  command->prefix_command();
  command->footer(
      "Example: muster submit --nodes 2 --gpus-per-node 4 --time 8:00:00 train experiments/quickstart.txtpb");
  command->callback([options, command] {
    options->command = command->remaining();
    submit(*options);
  });
}

void add_requeue_command(CLI::App& parent) {
  struct Arguments {
    std::string run_directory;
    std::string mpi = "pmix";
    int exit_code = -1;
    int max_restarts = 3;
    bool begins = false;
  };
  auto arguments = std::make_shared<Arguments>();
  auto* command = parent.add_subcommand(
      "requeue",
      "For job scripts: record how a Slurm job starts and ends; requeue it when another start can make progress");
  command->add_option("RUN_DIR", arguments->run_directory, "Run directory")->required();
  auto* begin = command->add_flag("--begin", arguments->begins, "The job starts");
  command
      ->add_option("--mpi", arguments->mpi,
                   "How srun will start the ranks (default: pmix); refused (exit 2) where srun does not know it")
      ->needs(begin);
  auto* code = command->add_option("--exit-code", arguments->exit_code, "The job ends, and this was srun's exit code")
                   ->check(CLI::Range(0, 255))
                   ->excludes(begin);
  command
      ->add_option("--max-restarts", arguments->max_restarts,
                   "Requeue at most this many times in a row without a newer checkpoint (default: 3)")
      ->check(CLI::NonNegativeNumber)
      ->needs(code);
  command->callback([arguments] {
    const auto place = run::run_dir_state(arguments->run_directory);
    if (place == run::RunDirState::kNothing || place == run::RunDirState::kOther)
      throw Error(ExitCode::kUsage, fmt::format("{}: is not a run directory; muster submit makes one for its job",
                                                arguments->run_directory));
    if (!arguments->begins && arguments->exit_code < 0) throw CLI::RequiredError("--begin or --exit-code");
    if (arguments->begins) return begin_job(arguments->run_directory, arguments->mpi);
    if (const int job_code = end_job(arguments->run_directory, arguments->exit_code, arguments->max_restarts);
        job_code != 0)
      std::exit(job_code);
  });
}

}  // namespace muster::launcher
