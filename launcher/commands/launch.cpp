#include "launcher/launch/launch.h"

#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launcher/commands/commands.h"
#include "launcher/doctor/ranks.h"

namespace muster::launcher {
namespace {

// What to start, and where. default_ranks: what the command does without -n, for the help text.
void add_start_options(CLI::App& command, JobRequest& job, const std::string& default_ranks) {
  // An empty shell variable would otherwise mean a job on this machine.
  const auto not_empty = [](const std::string& text) {
    return text.empty() ? std::string("it is empty; leave it out for this machine") : "";
  };
  command.add_option("-n,--ranks", job.ranks, fmt::format("Number of ranks (default: {})", default_ranks))
      ->check(CLI::Range(1, 1000000));
  auto* hosts =
      command.add_option("--hosts", job.hosts, "Hosts and how many ranks each may get, e.g. a:4,b:4")->check(not_empty);
  command.add_option("--hostfile", job.hostfile, "The same as a file of lines such as: a slots=4")
      ->check(not_empty)
      ->excludes(hosts);
  command.add_flag("--oversubscribe", job.oversubscribe, "Allow more ranks than cores or slots");
  command.add_flag("--allow-run-as-root", job.allow_run_as_root,
                   "Let mpirun run as root (sensible in a container only)");
}

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

void add_doctor_command(CLI::App& parent) {
  struct Options : doctor::DoctorOptions {
    int as_rank = 0;
  };
  auto options = std::make_shared<Options>();
  auto* command = parent.add_subcommand("doctor", "Check and time the machines that a job would run on");
  add_start_options(*command, options->job, "the slots of the hosts, the tasks of the allocation, one per GPU, or two");
  command->add_option("--directory", options->directory, "Folder whose file system is tried (default: this one)");
  command->add_option("--timeout", options->timeout, "Seconds of silence after which ranks are given up (default: 60)")
      ->check(CLI::Range(0.001, 86400.0));
  command->add_flag("--json", options->json, "All findings as one JSON document");
  command->add_option("--as-rank", options->as_rank)->group("");  // what the ranks themselves run: their number
  command->footer(
      "Exit code 0: nothing is broken (warnings allowed); 1: something is. Example: muster doctor -n 2 --directory "
      "runs");
  command->callback([options] {
    if (options->as_rank > 0) return doctor::run_as_rank(*options, options->as_rank);
    if (const int code = doctor::examine(*options)) std::exit(code);
  });
}

}  // namespace muster::launcher
