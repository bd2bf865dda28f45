#include <memory>
#include <string>
#include <vector>

#include "core/config/load.h"
#include "core/config/resolved_text.h"
#include "core/training/same_job.h"
#include "core/training/trainer.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/job.h"

namespace muster::launcher {
namespace {

struct Arguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string run_directory;
  std::string init_from;
  uint64_t max_steps = 0;
  bool dry_run = false;
};

std::string command_line(const Arguments& arguments) {
  std::string line = "muster train " + arguments.config;
  for (const auto& override_text : arguments.overrides) line += " --set " + override_text;
  if (!arguments.run_directory.empty()) line += " --run-dir " + arguments.run_directory;
  if (!arguments.init_from.empty()) line += " --init-from " + arguments.init_from;
  if (arguments.max_steps > 0) line += " --max-steps " + std::to_string(arguments.max_steps);
  return line;
}

void run(const Arguments& arguments) {
  run_job([&](distributed::Communicator& communicator) {
    auto overrides = arguments.overrides;
    if (arguments.max_steps > 0) overrides.push_back("training.max_steps=" + std::to_string(arguments.max_steps));
    config::LoadedExperiment loaded;
    distributed::together(communicator, [&] { loaded = config::load_experiment(arguments.config, overrides); });
    training::require_same_job(communicator, config::resolved_text(loaded.experiment) + arguments.init_from + (arguments.dry_run ? " --dry-run" : ""));
    training::TrainOptions options;
    options.run_directory = arguments.run_directory.empty() ? "runs/" + loaded.experiment.name() : arguments.run_directory;
    options.init_from = arguments.init_from;
    options.dry_run = arguments.dry_run;
    options.command_line = command_line(arguments);
    training::train(loaded, options, communicator);
  });
}

}  // namespace

void add_train_command(CLI::App& parent) {
  auto arguments = std::make_shared<Arguments>();
  auto* command = parent.add_subcommand("train", "Train an experiment: alone, or as each rank under mpirun or srun");
  command->add_option("CONFIG", arguments->config, "Experiment file (.txtpb)")->required();
  command->add_option("--set", arguments->overrides, "Override a value, e.g. --set training.epochs=3 (repeatable)")->allow_extra_args(false);
  command->add_option("--run-dir", arguments->run_directory, "Where results go (default: runs/<experiment's name>)");
  command->add_option("--init-from", arguments->init_from, "Start from the weights in this safetensors file");
  command->add_option("--max-steps", arguments->max_steps, "Stop after this many steps (short for --set training.max_steps=N)");
  command->add_flag("--dry-run", arguments->dry_run, "Check config and data, train nothing, write nothing");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace muster::launcher
