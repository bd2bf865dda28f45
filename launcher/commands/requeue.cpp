#include "launcher/slurm/requeue.h"

#include <cstdlib>
#include <memory>

#include "core/run/run_directory.h"
#include "base/error.h"
#include "launcher/commands/commands.h"

namespace muster::launcher {

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
      "requeue", "For job scripts: write down how a Slurm job begins and ends, and queue it again if that is of use");
  command->add_option("RUN_DIR", arguments->run_directory, "Run directory")->required();
  auto* begin = command->add_flag("--begin", arguments->begins, "The job begins");
  command
      ->add_option("--mpi", arguments->mpi,
                   "How srun will start the ranks (default: pmix); refused (exit 2) where srun does not know it")
      ->needs(begin);
  auto* code = command->add_option("--exit-code", arguments->exit_code, "The job ends, and srun has ended with this")
                   ->check(CLI::Range(0, 255))
                   ->excludes(begin);
  command
      ->add_option("--max-restarts", arguments->max_restarts,
                   "Queue again at most so often in a row without a newer checkpoint (default: 3)")
      ->check(CLI::NonNegativeNumber)
      ->needs(code);
  command->callback([arguments] {
    const auto place = run::run_dir_state(arguments->run_directory);
    if (place == run::RunDirState::kNothing || place == run::RunDirState::kOther)
      throw Error(ExitCode::kUsage,
                               arguments->run_directory + ": is no run directory; muster submit makes one for its job");
    if (!arguments->begins && arguments->exit_code < 0) throw CLI::RequiredError("--begin or --exit-code");
    if (arguments->begins) return begin_job(arguments->run_directory, arguments->mpi);
    if (const int job_code = end_job(arguments->run_directory, arguments->exit_code, arguments->max_restarts);
        job_code != 0)
      std::exit(job_code);
  });
}

}  // namespace muster::launcher
