#include "launcher/slurm/batch_script.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string_view>

#include "base/error.h"
#include "base/text.h"
#include "launcher/launch/job_command.h"

namespace muster::embedded {
extern const std::string_view slurm_sbatch_in;
}

namespace muster::launcher {
namespace {

constexpr int kMostTasks = 10000;

// One argument as the script's shell reads it; {task} becomes the task's number.
std::string quoted(const std::string& argument) {
  if (argument.find("{task}") == std::string::npos) return shell_quoted(argument);
  std::string text;
  for (const char c : argument)
    text += (std::string("\\\"$`").find(c) != std::string::npos ? "\\" : "") + std::string(1, c);
  return "\"" + for_task(text, "${SLURM_ARRAY_TASK_ID}") + "\"";
}

// A value in a #SBATCH line. sbatch takes quotes and backslashes off; a path of output with a backslash left in it
// means something else to Slurm.
std::string directive(const std::string& option, const std::string& value) {
  if (value.empty()) return "";
  if (value.find_first_of("\n\"\\") != std::string::npos)
    refuse_submission("{} cannot be given to Slurm with a quote, backslash or line break in it: {}", option, value);
  return fmt::format(shell_quoted(value) == value ? "#SBATCH {}={}\n" : "#SBATCH {}=\"{}\"\n", option, value);
}

std::string number(int value) { return value > 0 ? fmt::to_string(value) : ""; }

// Whether a later start may get fewer nodes.
bool may_shrink(const BatchJob& job) { return job.nodes.find('-') != std::string::npos; }

// Where the output goes. Slurm fills in %j and the like, so that a % of the path's own is doubled.
std::string output_file(const BatchJob& job) {
  std::string run;
  for (const char c : job.run_directory) run += c == '%' ? "%%" : std::string(1, c);
  return fmt::format("{}/logs/slurm-{}.out", for_task(run, "%a"), job.array.empty() ? "%j" : "%A_%a");
}

// An option of --sbatch, as it was given.
std::string further_option(const std::string& option) {
  if (option.empty() || option[0] != '-' || option.find('\n') != std::string::npos)
    refuse_submission("--sbatch takes an option of sbatch with its value, e.g. --sbatch=\"--mem=64G\", not: {}",
                      option);
  if (option.rfind("--array", 0) == 0 || option.rfind("-a", 0) == 0)
    refuse_submission(
        "--sbatch=\"{}\": give --array to submit itself, so that each task gets a run directory of its own", option);
  return fmt::format("#SBATCH {}\n", option);
}

std::string directives(const BatchJob& job) {
  std::string text;
  const auto add = [&](const char* option, const std::string& value) { text += directive(option, value); };
  add("--job-name", job.name);
  add("--chdir", job.directory);
  add("--output", output_file(job));
  add("--nodes", job.nodes);
  if (may_shrink(job)) {
    text += "# Not as tasks: after the first start Slurm would insist on that many tasks and nodes.\n";
    add("--mincpus", number(job.ranks_per_node * std::max(1, job.cpus_per_task)));
  } else {
    add("--ntasks-per-node", number(job.ranks_per_node));
  }
  add("--gpus-per-node", number(job.gpus_per_node));
  add("--cpus-per-task", number(job.cpus_per_task));
  add("--time", job.time);
  add("--partition", job.partition);
  add("--account", job.account);
  add("--qos", job.qos);
  add("--constraint", job.constraint);
  add("--array", job.array);
  text +=
      "# Slurm may requeue the job, which then appends to the same output file.\n#SBATCH --requeue\n#SBATCH "
      "--open-mode=append\n"
      "# Asks the ranks to save and stop this many seconds before the time limit (Slurm may do it up to a minute "
      "earlier).\n";
  add("--signal", fmt::format("USR1@{}", job.grace_seconds));
  if (!job.sbatch.empty()) text += "# Further options, as given.\n";
  for (const auto& option : job.sbatch) text += further_option(option);
  text.pop_back();
  return text;
}

std::string setup_lines(const BatchJob& job) {
  std::string text;
  if (!job.modules.empty()) {
    text += "# Modules of this site.\nmodule load";
    for (const auto& module : job.modules) text += " " + quoted(module);
    text += " || exit\n";
  }
  if (!job.setup.empty()) text += "# From the site's profile.\n";
  for (const auto& line : job.setup) text += line + "\n";
  if (job.cpus_per_task > 0)
    text += fmt::format("# Threads of each rank, unless the experiment says how many.\nexport OMP_NUM_THREADS={}\n",
                        job.cpus_per_task);
  if (!text.empty()) text.pop_back();
  return text;
}

std::string srun_line(const BatchJob& job) {
  std::string text = fmt::format("srun --mpi={} --wait=30", quoted(job.mpi));
  if (may_shrink(job))
    text +=
        fmt::format(" --nodes=\"$SLURM_JOB_NUM_NODES\" --ntasks-per-node={0} --ntasks=$(({0} * SLURM_JOB_NUM_NODES))",
                    job.ranks_per_node);
  // srun does not take this from the allocation.
  if (job.cpus_per_task > 0) text += fmt::format(" --cpus-per-task={}", job.cpus_per_task);
  text += " \"$muster\" \\\n   ";
  for (const auto& argument : job.train) text += " " + quoted(argument);
  return text + " \\\n    --run-dir \"$run\" --resume auto";
}

}  // namespace

std::string own_template() { return std::string(embedded::slurm_sbatch_in); }

std::string for_task(const std::string& text, const std::string& task) {
  std::string result = text;
  for (size_t at = 0; (at = result.find("{task}", at)) != std::string::npos; at += task.size())
    result.replace(at, 6, task);
  return result;
}

std::string batch_script(const BatchJob& job, const std::string& script_template) {
  const std::map<std::string, std::string> values{{"SBATCH", directives(job)},
                                                  {"SETUP", setup_lines(job)},
                                                  {"PROGRAM", quoted(job.program)},
                                                  {"RUN", quoted(job.run_directory)},
                                                  {"SCRIPT", quoted(for_task(job.run_directory, "N") + "/job.sbatch")},
                                                  {"DIRECTORY", quoted(job.directory)},
                                                  {"MPI", quoted(job.mpi)},
                                                  {"SRUN", srun_line(job)},
                                                  {"MAX_RESTARTS", fmt::to_string(job.max_restarts)}};
  static const std::regex word("@([A-Z_]+)@");
  std::set<std::string> used;
  std::istringstream lines(script_template);
  std::string script;
  bool blank = false;
  for (std::string line; std::getline(lines, line);) {
    std::string filled;
    auto rest = line.cbegin();
    for (std::smatch found; std::regex_search(rest, line.cend(), found, word); rest = found[0].second) {
      const auto value = values.find(found[1]);
      if (value == values.end())
        refuse_submission("the job template has @{}@, which muster does not know", found[1].str());
      used.insert(found[1]);
      filled += std::string(rest, found[0].first) + value->second;
    }
    filled += std::string(rest, line.cend());
    if (filled.empty() && (blank || !line.empty())) continue;  // an empty word, or the blank line around it
    blank = filled.empty();
    script += filled + "\n";
  }
  for (const char* needed : {"SBATCH", "RUN", "SRUN"})
    if (!used.count(needed))
      refuse_submission("the job template lacks @{}@; cluster/slurm.sbatch.in shows how one looks", needed);
  return script;
}

std::vector<int> tasks_of_array(const std::string& array) {
  static const std::regex shape(R"(\d{1,9}(-\d{1,9}(:\d{1,9})?)?(,\d{1,9}(-\d{1,9}(:\d{1,9})?)?)*(%\d{1,9})?)");
  const auto refuse_array = [&] {
    refuse_submission("--array {}: write 0-4, 1,3,7 or 0-15:4, and %2 behind it for two at a time; at most {} tasks",
                      array, kMostTasks);
  };
  if (!std::regex_match(array, shape)) refuse_array();
  std::set<int> tasks;
  std::istringstream parts(array.substr(0, array.find('%')));
  for (std::string part; std::getline(parts, part, ',');) {
    int first = 0, last = -1, step = 1;
    std::sscanf(part.c_str(), "%d-%d:%d", &first, &last, &step);
    if (last < 0) last = first;
    if (step < 1 || last < first || (last - first) / step >= kMostTasks) refuse_array();
    for (int task = first; task <= last; task += step) tasks.insert(task);
  }
  if (tasks.size() > kMostTasks) refuse_array();
  return {tasks.begin(), tasks.end()};
}

}  // namespace muster::launcher
