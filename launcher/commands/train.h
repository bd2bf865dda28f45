#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace muster::launcher {

// The command line of `train` and `resume`.
struct TrainArguments {
  bool resumes = false;  // the command `resume`
  std::string config;    // of resume: none, it is the run directory's
  std::vector<std::string> overrides;
  std::string run_directory;
  std::string init_from;
  std::string begin;  // --resume
  std::string time_limit;
  uint64_t max_steps = 0;
  bool force = false;
  bool dry_run = false;
};

// Options of `train`, for a parser of its command line; `arguments` must outlive it.
void add_train_options(CLI::App& command, TrainArguments& arguments);

// The same as a command: "train", "experiment.txtpb", "--set", "seed=3", ... Without --dry-run.
std::vector<std::string> to_command(const TrainArguments& arguments);

// What the experiment's values are overridden with: --set and --max-steps.
std::vector<std::string> overrides_of(const TrainArguments& arguments);

}  // namespace muster::launcher
