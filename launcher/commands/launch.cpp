#include "launcher/launch/launch.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launcher/commands/commands.h"

namespace muster::launcher {
namespace {

// Reads the ranks' command by the same options as the command itself. What is wrong with it the ranks report.
RankCommand rank_command(const std::vector<std::string>& arguments) {
  RankCommand command{arguments, "", "", {}, false};
  CLI::App parser;
  add_train_command(parser);
  add_resume_command(parser);
  add_search_command(parser);
  add_study_command(parser);
  for (auto* subcommand : parser.get_subcommands([](CLI::App*) { return true; })) {
    subcommand->callback({});
    for (auto* further : subcommand->get_subcommands([](CLI::App*) { return true; })) further->callback({});
  }
  try {
    parser.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError&) {
    return command;
  }
  const CLI::App* parsed = &parser;
  while (!parsed->get_subcommands().empty()) parsed = parsed->get_subcommands()[0];
  const auto value = [&](const std::string& name) {
    const CLI::Option* option = parsed->get_option_no_throw(name);
    return option && !option->empty() ? option->results() : std::vector<std::string>();
  };
  for (const char* name : {"CONFIG", "SPEC"})
    for (const auto& text : value(name)) command.file = text;
  for (const char* name : {"RUN_DIR", "--run-dir", "--search-dir", "--study-dir"})
    for (const auto& text : value(name)) command.directory = text;
  command.overrides = value("--set");
  command.resumes = !value("--resume").empty();
  return command;
}

}  // namespace

void add_launch_command(CLI::App& parent) {
  static const std::map<std::string, LaunchBackend> backends{
      {"auto", LaunchBackend::kAuto}, {"mpirun", LaunchBackend::kMpirun}, {"srun", LaunchBackend::kSrun}};
  struct Options : LaunchOptions {
    std::string backend = "auto";
  };
  auto options = std::make_shared<Options>();
  auto* command = parent.add_subcommand(
      "launch", "Start a muster command on several ranks: on this machine, several hosts, or in a Slurm allocation");
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
      ->add_option("--backend,--starter", options->backend,
                   "What starts the ranks: auto (default: srun inside a Slurm allocation, else mpirun), mpirun or srun")
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
    options->job.backend = backends.at(options->backend);
    options->command = rank_command(command->remaining());
    launch(*options);
  });
}

}  // namespace muster::launcher
