#include "launcher/slurm/submission.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>

#include "base/atomic_file.h"
#include "base/json.h"
#include "base/print.h"
#include "base/text.h"
#include "core/batch/plan.h"
#include "core/config/load.h"
#include "core/config/text_format.h"
#include "core/run/run_directory.h"
#include "core/run/run_status.h"
#include "core/run/stop.h"
#include "core/training/compute.h"
#include "core/training/data_source.h"
#include "launcher/commands/train.h"
#include "launcher/launch/launch_environment.h"
#include "launcher/slurm/job_log.h"
#include "launcher/slurm/site.h"
#include "launcher/slurm/this_job.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;
using run::RunDirState;

std::string absolute(const std::string& path) {
  const fs::path whole = fs::absolute(path).lexically_normal();
  return (whole.has_filename() ? whole : whole.parent_path()).string();
}

TrainArguments read_train(const std::vector<std::string>& command) {
  if (command.empty() || command[0] != "train")
    refuse_submission(
        "{} Give train with its arguments after submit's own options: muster submit --time 8:00:00 train "
        "CONFIG",
        command.empty() ? "what should the job run?" : fmt::format("a job runs train, not {}.", command[0]));
  TrainArguments train;
  CLI::App parser{"", "muster submit ... train"};
  add_train_options(parser, train);
  std::vector<std::string> arguments(command.rbegin(), command.rend() - 1);
  try {
    parser.parse(arguments);
  } catch (const CLI::ExtrasError& error) {
    refuse_submission(
        "train does not know these. {}. Options of the job go before train: muster submit --nodes 2 train "
        "CONFIG",
        error.what());
  }
  if (train.dry_run) refuse_submission("--dry-run goes before train: it prints the job script");
  return train;
}

int most_nodes(const std::string& nodes) {
  static const std::regex shape(R"((\d{1,6})(?:-(\d{1,6}))?)");
  std::smatch found;
  if (!std::regex_match(nodes, found, shape))
    refuse_submission("--nodes {}: write 2, or 1-2 for as many as are free", nodes);
  const int least = std::stoi(found[1]), most = found[2].matched ? std::stoi(found[2]) : least;
  if (least < 1 || most < least) refuse_submission("--nodes {}: at least 1, and the smaller number first", nodes);
  return most;
}

BatchJob merged(const SubmitOptions& options, const Site& site) {
  BatchJob job;
  static_cast<JobSettings&>(job) = options;
  const auto complete = [](std::string& own, const std::string& sites) { own = own.empty() ? sites : own; };
  const auto complete_number = [](int& own, uint32_t sites, int otherwise) {
    if (own == 0) own = sites > 0 ? static_cast<int>(sites) : otherwise;
  };
  complete(job.nodes, "1");
  complete(job.time, site.time());
  complete(job.partition, site.partition());
  complete(job.account, site.account());
  complete(job.qos, site.qos());
  complete(job.constraint, site.constraint());
  complete_number(job.gpus_per_node, site.gpus_per_node(), 0);
  complete_number(job.ranks_per_node, site.ranks_per_node(), std::max(1, job.gpus_per_node));
  complete_number(job.cpus_per_task, site.cpus_per_task(), 0);
  complete_number(job.grace_seconds, site.grace_seconds(), 120);
  if (site.has_mpi()) job.mpi = site.mpi();
  job.modules.assign(site.modules().begin(), site.modules().end());
  job.setup.assign(site.setup().begin(), site.setup().end());
  job.sbatch.insert(job.sbatch.begin(), site.sbatch().begin(), site.sbatch().end());
  return job;
}

void require_time_to_train(const BatchJob& job) {
  const auto limit = parse_duration(job.time);
  if (limit && *limit <= job.grace_seconds)
    refuse_submission(
        "--time {} leaves no time to train: the run is asked to stop {} seconds before the limit. Ask for "
        "more time (--time 10 is ten minutes), or a shorter --grace",
        job.time, job.grace_seconds);
}

// What train would find wrong later, in the queue.
config::LoadedExperiment checked(const TrainArguments& train, const std::string& task, const BatchJob& job) {
  auto overrides = overrides_of(train);
  for (auto& text : overrides) text = for_task(text, task);
  auto loaded = config::load_experiment(for_task(train.config, task), overrides);
  const int nodes = most_nodes(job.nodes);
  config::with_places(loaded, [&] {
    training::microbatches_of(loaded.experiment.training(), int64_t{nodes} * job.ranks_per_node);
    const auto data = training::open_training_data(loaded.experiment);
    batch::TrainingPlan(loaded, data.index(), training::split_data(loaded.experiment, data, true).train);
  });
  const auto& settings = loaded.experiment.training();
  if (job.gpus_per_node > 0 && job.ranks_per_node > job.gpus_per_node && !settings.share_device() &&
      settings.device() != config::Training::CPU)
    refuse_submission(
        "{} ranks on {} GPUs of a node: each rank needs one of its own. Ask for as many "
        "(--ranks-per-node), or set training.share_device=true",
        job.ranks_per_node, job.gpus_per_node);
  if (const auto from = for_task(train.init_from, task); !from.empty() && !fs::is_regular_file(from))
    throw Error(ExitCode::kBadData, fmt::format("{}: there is no such weights file (--init-from)", from));
  return loaded;
}

std::string submission_text(const nlohmann::json& submission) {
  return submission.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

void require_free(const std::string& run_directory) {
  const RunDirState place = run::run_dir_state(run_directory);
  if (place == RunDirState::kOther)
    refuse_submission("{} exists already and is no run directory; choose another --run-dir", run_directory);
  if (place == RunDirState::kFinished)
    refuse_submission(
        "{} holds a finished run. For a new one choose another --run-dir, or remove that one; to train it "
        "for longer: muster resume with --set training.epochs=N",
        run_directory);
  const auto before = read_submission(run_directory);
  if (const std::string job = text_in(before, "job"); !job.empty()) {
    const ProcessResult queued = run_slurm({"squeue", "-h", "-o", "%T %o", "-j", job});
    const std::string shown = queued.answer(), state = shown.substr(0, shown.find(' '));
    // A cluster that was set up anew gives the same numbers to other jobs.
    const bool is_ours = (shown + " ").rfind(fmt::format("{} {}", state, text_in(before, "script")), 0) == 0;
    if (queued.code == 0 && !state.empty() && is_ours)
      refuse_submission("{0} has a job already: {1} is {2}. Wait for it, or end it first: scancel {1}", run_directory,
                        job, state);
  }
  if (place != RunDirState::kBegun) return;
  const auto status = run::run_status(run_directory);
  if (status.state == run::RunState::kRunning)
    refuse_submission("{} is in use by {}. Two jobs cannot write one run", run_directory, status.holder);
}

// What an allocation says of itself must not be passed on to another job: srun would take it for the new one's.
void forget_this_allocation() {
  if (variable("SLURM_JOB_ID").empty()) return;
  for (const auto& [name, value] : process_environment())
    if (name.rfind("SLURM_", 0) == 0 && name != "SLURM_CONF" && name != "SLURM_JWT") unsetenv(name.c_str());
}

// Returns the job's number.
std::string call_sbatch(std::vector<std::string> arguments, const std::string& script) {
  forget_this_allocation();
  arguments.insert(arguments.begin(), {"sbatch", "--parsable"});
  arguments.push_back(script);
  const ProcessResult end = run_slurm(arguments);
  if (end.start_error != 0)
    refuse_submission(
        "there is no sbatch on the PATH: is this a login node of a Slurm cluster? (muster launch starts ranks without "
        "Slurm)");
  const std::string answer = end.answer();
  if (end.code != 0) refuse_submission("sbatch has refused the job: {}", answer);
  const std::string last = answer.substr(answer.rfind('\n') + 1);  // sites let sbatch print notes before it
  return last.substr(0, last.find(';'));
}

// One run of a submission: of an array, one task.
struct SubmittedRun {
  std::string task;  // empty: no array
  std::string directory;
  bool is_new = false;
  nlohmann::json submission;
};

}  // namespace

void submit(const SubmitOptions& options) {
  TrainArguments train = read_train(options.command);
  BatchJob job = merged(options, load_site(options.site));
  require_time_to_train(job);
  const int nodes = most_nodes(job.nodes);
  const bool is_array = !job.array.empty();
  std::vector<std::string> tasks;
  if (is_array)
    for (const int task : tasks_of_array(job.array)) tasks.push_back(fmt::to_string(task));
  else
    tasks.push_back("");
  const std::string command_text =
      nlohmann::json(options.command).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (!is_array && command_text.find("{task}") != std::string::npos)
    refuse_submission("{{task}} is the number of an array's task: say which, e.g. --array 0-4");

  std::string name;
  std::vector<SubmittedRun> runs;
  for (const auto& task : tasks) {
    const auto loaded = checked(train, task, job);
    if (name.empty()) {
      name = loaded.experiment.name();
      for (const auto& note : loaded.notes) print_error("note: {}\n", note);
      if (train.run_directory.empty()) train.run_directory = "runs/" + name + (is_array ? "-{task}" : "");
      if (is_array && train.run_directory.find("{task}") == std::string::npos)
        refuse_submission("--run-dir {}: every task of an array needs a run directory of its own; put {{task}} into it",
                          train.run_directory);
      job.run_directory = absolute(train.run_directory);
    }
    runs.push_back({task, for_task(job.run_directory, task), false, {}});
  }
  job.name = options.job_name.empty() ? name : options.job_name;
  job.directory = fs::current_path().string();
  job.program = fs::read_symlink("/proc/self/exe").string();
  TrainArguments of_job = train;
  of_job.config = absolute(train.config);
  if (!train.init_from.empty()) of_job.init_from = absolute(train.init_from);
  of_job.run_directory.clear();
  of_job.begin.clear();
  job.train = to_command(of_job);
  const std::string script =
      batch_script(job, options.template_file.empty() ? own_template() : config::read_text_file(options.template_file));
  if (options.dry_run) {
    std::fputs(script.c_str(), stdout);
    return;
  }

  for (auto& run : runs) {
    require_free(run.directory);
    run.is_new = run::run_dir_state(run.directory) == RunDirState::kNothing;
    run.submission = {{"time", utc_now()},
                      {"command", options.command},
                      {"job_name", job.name},
                      {"nodes", job.nodes},
                      {"ranks_per_node", job.ranks_per_node},
                      {"gpus_per_node", job.gpus_per_node},
                      {"time_limit", job.time},
                      {"script", runs[0].directory + "/job.sbatch"},
                      {"job", nullptr}};
    if (is_array) run.submission["task"] = run.task;
  }
  std::string id;
  try {
    for (const auto& run : runs) {
      run::prepare_run_directory(run.directory,
                                 {{"job.sbatch", script}, {"submission.json", submission_text(run.submission)}});
      append_job_log(run.directory, {{"event", "submitted"}});
    }
    id = call_sbatch({}, runs[0].submission["script"]);
  } catch (...) {
    std::error_code ignored;
    for (const auto& run : runs)
      if (run.is_new && run::run_dir_state(run.directory) == RunDirState::kPrepared)
        fs::remove_all(run.directory, ignored);
    throw;
  }
  const auto id_of = [&](const SubmittedRun& run) { return is_array ? fmt::format("{}_{}", id, run.task) : id; };
  for (auto& run : runs) {
    run.submission["job"] = id_of(run);
    write_file_atomically(run.directory + "/submission.json", submission_text(run.submission));
  }
  std::string limit;
  if (!job.time.empty())
    limit = fmt::format(", time limit of each start: {}{}", job.time, parse_integer(job.time) ? " minutes" : "");
  print_out("submitted job {}: {}, {} on {} node{} with {} each{}\n", id, job.name,
            plural(static_cast<int64_t>(runs.size()), "run"), job.nodes, nodes == 1 ? "" : "s",
            plural(job.ranks_per_node, "rank"), limit);
  for (const auto& run : runs)
    if (run::run_dir_state(run.directory) == RunDirState::kBegun)
      print_out("{} holds an unfinished run: the job continues it\n", run.directory);
  const std::string shown = for_task(train.run_directory, runs[0].task);
  const std::string output = fmt::format("{}/logs/slurm-{}.out", shown, id_of(runs[0]));
  print_out("status:       muster status {}\noutput:       {}\nto cancel:    scancel {}\n", shell_quoted(shown),
            shell_quoted(output), id);
}

std::string submit_again(const std::string& run_directory) {
  auto submission = read_submission(run_directory);
  const std::string task = variable("SLURM_ARRAY_TASK_ID");
  const std::string script = run_directory + "/job.sbatch";
  std::vector<std::string> arguments;
  if (!task.empty()) arguments.push_back("--array=" + task);
  std::string job = call_sbatch(arguments, script);
  if (!task.empty()) job += "_" + task;
  submission["script"] = script;
  submission["job"] = job;
  write_file_atomically(run_directory + "/submission.json", submission_text(submission));
  return job;
}

}  // namespace muster::launcher
