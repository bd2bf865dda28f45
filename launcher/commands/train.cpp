#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/text.h"
#include "core/config/load.h"
#include "core/config/resolved_text.h"
#include "core/config/stored.h"
#include "core/run/run_directory.h"
#include "core/run/stop.h"
#include "core/training/same_job.h"
#include "core/training/trainer.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/train.h"
#include "launcher/launch/launch.h"

namespace muster::launcher {
namespace {

std::string command_line(const TrainArguments& arguments) { return "muster " + join(to_command(arguments), " "); }

// Seconds of the time limit that have passed in earlier starts of the same `muster launch --max-restarts`.
double seconds_before() {
  const char* started = std::getenv(kLaunchStarted);
  if (!started) return 0;
  return std::max(0.0, std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count() -
                           std::atof(started));
}

std::string run_directory_of(const TrainArguments& arguments, const config::LoadedExperiment& loaded) {
  return arguments.run_directory.empty() ? "runs/" + loaded.experiment.name() : arguments.run_directory;
}

// A run that an earlier version has begun continues with what has changed in muster since.
void continue_as_begun(const TrainArguments& arguments, config::LoadedExperiment& loaded) {
  const std::string stored = run_directory_of(arguments, loaded) + "/config.txtpb";
  if (!std::filesystem::exists(stored)) return;
  auto overrides = overrides_of(arguments);
  for (const auto& choice :
       config::earlier_choices(config::load_stored_experiment(stored).experiment, loaded.experiment))
    overrides.push_back(choice.path + "=" + choice.before);
  loaded = config::load_any_experiment(arguments.config, overrides);
}

void run(const TrainArguments& arguments) {
  run::catch_stop_signals();
  run_job([&](distributed::Communicator& communicator) {
    training::TrainOptions options;
    config::LoadedExperiment loaded;
    distributed::run_on_all_ranks(communicator, [&] {
      const auto place = run::run_dir_state(arguments.run_directory);
      if (arguments.resumes && place == run::RunDirState::kNothing)
        throw Error(ExitCode::kUsage, fmt::format("{}: there is no such run to resume", arguments.run_directory));
      if (arguments.resumes && place == run::RunDirState::kPrepared)
        throw Error(ExitCode::kUsage,
                    fmt::format("{0}: the run has not begun yet, so there is nothing to resume. Its job begins it, or: "
                                "muster train CONFIG --run-dir {0}",
                                arguments.run_directory));
      loaded = arguments.resumes
                   ? config::load_stored_experiment(arguments.run_directory + "/config.txtpb", overrides_of(arguments))
                   : config::load_any_experiment(arguments.config, overrides_of(arguments));
      if (arguments.begin == "auto") continue_as_begun(arguments, loaded);
      if (!arguments.time_limit.empty())
        options.time_limit = std::max(1e-3, parse_duration(arguments.time_limit).value() - seconds_before());
    });
    options.run_directory = run_directory_of(arguments, loaded);
    options.begin = arguments.resumes           ? training::Begin::kResume
                    : arguments.begin == "auto" ? training::Begin::kAuto
                                                : training::Begin::kNew;
    options.force = arguments.force;
    options.init_from =
        arguments.init_from.empty() ? "" : std::filesystem::absolute(arguments.init_from).lexically_normal().string();
    if (options.init_from.empty() && options.begin != training::Begin::kNew)
      distributed::run_on_all_ranks(communicator,
                                    [&] { options.init_from = run::recorded_init_from(options.run_directory).path; });
    options.dry_run = arguments.dry_run;
    options.command_line = command_line(arguments);
    training::require_same_job(communicator, config::resolved_text(loaded.experiment) + options.command_line +
                                                 (arguments.dry_run ? " --dry-run" : ""));
    training::train(loaded, options, communicator);
  });
}

void add_common_options(CLI::App& command, TrainArguments& arguments) {
  command.add_option("--set", arguments.overrides, "Override a value, e.g. --set training.epochs=3 (repeatable)")
      ->allow_extra_args(false);
  command.add_option("--max-steps", arguments.max_steps,
                     "Stop after this many steps (short for --set training.max_steps=N)");
  command
      .add_option("--time-limit", arguments.time_limit,
                  "Save and stop (exit 75) at the first step that ends later, e.g. 3h55m; minutes without a unit")
      ->check([](const std::string& text) {
        return parse_duration(text)
                   ? ""
                   : fmt::format("\"{}\" is not a duration; write 3h55m, 90s, 45 (minutes) or 3:55:00", text);
      });
  command.add_flag(
      "--force", arguments.force,
      "Continue a run although its data, its settings or muster have changed in a way that changes results");
}

}  // namespace

void add_train_options(CLI::App& command, TrainArguments& arguments) {
  command.add_option("CONFIG", arguments.config, "Experiment file (.txtpb)")->required();
  command.add_option("--run-dir", arguments.run_directory, "Where results go (default: runs/<experiment's name>)");
  command.add_option("--resume", arguments.begin, "auto: continue the run directory if it exists, else begin")
      ->check(CLI::IsMember({"auto"}));
  command.add_option("--init-from", arguments.init_from, "Start from the weights in this safetensors file");
  command.add_flag("--dry-run", arguments.dry_run, "Check config and data, train nothing, write nothing");
  add_common_options(command, arguments);
}

std::vector<std::string> to_command(const TrainArguments& arguments) {
  std::vector<std::string> command{arguments.resumes ? "resume" : "train",
                                   arguments.resumes ? arguments.run_directory : arguments.config};
  const auto add = [&](const std::string& name, const std::string& value) {
    if (!value.empty()) command.insert(command.end(), {name, value});
  };
  for (const auto& override_text : arguments.overrides) add("--set", override_text);
  if (!arguments.resumes) add("--run-dir", arguments.run_directory);
  add("--resume", arguments.begin);
  add("--init-from", arguments.init_from);
  if (arguments.max_steps > 0) add("--max-steps", fmt::to_string(arguments.max_steps));
  add("--time-limit", arguments.time_limit);
  if (arguments.force) command.push_back("--force");
  return command;
}

std::vector<std::string> overrides_of(const TrainArguments& arguments) {
  auto overrides = arguments.overrides;
  if (arguments.max_steps > 0) overrides.push_back(fmt::format("training.max_steps={}", arguments.max_steps));
  return overrides;
}

void add_train_command(CLI::App& parent) {
  auto arguments = std::make_shared<TrainArguments>();
  auto* command = parent.add_subcommand("train", "Train an experiment: alone, or as each rank under mpirun or srun");
  add_train_options(*command, *arguments);
  command->callback([arguments] { run(*arguments); });
}

void add_resume_command(CLI::App& parent) {
  auto arguments = std::make_shared<TrainArguments>();
  arguments->resumes = true;
  auto* command = parent.add_subcommand("resume", "Continue a run from its newest checkpoint, on any number of ranks");
  command->add_option("RUN_DIR", arguments->run_directory, "Run directory")->required();
  add_common_options(*command, *arguments);
  command->callback([arguments] { run(*arguments); });
}

}  // namespace muster::launcher
