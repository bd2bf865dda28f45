#include "launcher/slurm/requeue.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>

#include "base/error.h"
#include "base/text.h"
#include "launcher/launch/job_command.h"
#include "launcher/launch/restarts.h"
#include "launcher/slurm/job_log.h"
#include "launcher/slurm/submission.h"
#include "launcher/work/tool.h"

namespace muster::launcher {
namespace {

using Action = Decision::Action;

std::string variable(const char* name) { return std::getenv(name) ? std::getenv(name) : ""; }

// As Slurm's commands take it.
std::string id_of_this_job() {
  const std::string array = variable("SLURM_ARRAY_JOB_ID"), task = variable("SLURM_ARRAY_TASK_ID");
  return array.empty() || task.empty() ? variable("SLURM_JOB_ID") : array + "_" + task;
}

int64_t number(const std::string& text) { return std::strtoll(text.c_str(), nullptr, 10); }

// "1-02:00:00" and the like; 0 for UNLIMITED.
int64_t seconds_of(const std::string& text) {
  int64_t days = 0, hours = 0, minutes = 0, seconds = 0;
  if (std::sscanf(text.c_str(), "%ld-%ld:%ld:%ld", &days, &hours, &minutes, &seconds) == 4)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
  return std::sscanf(text.c_str(), "%ld:%ld:%ld", &hours, &minutes, &seconds) == 3
             ? (hours * 60 + minutes) * 60 + seconds
             : 0;
}

std::string meaning(int code) {
  switch (code) {
    case 65:
      return "a data or weights file is wrong";
    case 70:
      return "training failed";
    case 74:
      return "a disk could not be read or written";
    case 76:
      return "a rank was lost";
    case 78:
      return "the experiment is wrong";
    case 2:
      return "the command line or the allocation is wrong";
    default:
      return code > 128 ? std::string("ended by signal ") + std::to_string(code - 128) : "srun failed";
  }
}

// Whether the answer of `srun --mpi=list` has it: as a word, or among versions with commas between them.
bool lists(const std::string& answer, const std::string& mpi) {
  std::string text = answer;
  std::replace(text.begin(), text.end(), ',', ' ');
  std::istringstream words(text);
  for (std::string word; words >> word;)
    if (word == mpi) return true;
  return false;
}

}  // namespace

JobState job_state(const std::string& shown, int64_t restarts) {
  std::map<std::string, std::string> fields;
  std::istringstream words(shown);
  for (std::string word; words >> word;)
    if (const size_t equals = word.find('='); equals != std::string::npos)
      fields.emplace(word.substr(0, equals), word.substr(equals + 1));
  const std::string state = fields["JobState"];
  if (state.empty()) return JobState::kUnknown;
  if (state == "RUNNING" || state == "SUSPENDED") return JobState::kRunning;
  // While a job is being ended it is COMPLETING, whatever for. One that Slurm has queued again (preemption, a lost
  // node) counts it already.
  if (state == "PENDING" || state == "REQUEUED" || number(fields["Restarts"]) > restarts) return JobState::kQueued;
  if (state == "PREEMPTED" || fields.count("PreemptTime")) return JobState::kPreempted;
  if (state == "TIMEOUT") return JobState::kTimedOut;
  // A cancelled one must not come back, although `scontrol requeue` would do it.
  const int64_t limit = seconds_of(fields["TimeLimit"]), ran = seconds_of(fields["RunTime"]);
  if (state == "COMPLETING" && limit > 0 && ran >= limit) return JobState::kTimedOut;
  return JobState::kCancelled;
}

Decision decide(int exit_code, JobState state, int starts, int max_restarts) {
  const auto is = [&](std::initializer_list<int> codes) {
    return std::find(codes.begin(), codes.end(), exit_code) != codes.end();
  };
  if (exit_code == 0) return {Action::kDone, "the run is finished"};
  if (is({2, 65, 78}))
    return {Action::kStop, "exit code " + std::to_string(exit_code) + ": " + meaning(exit_code) +
                               ", which another start would not mend"};
  if (state == JobState::kCancelled) return {Action::kStop, "the job was cancelled"};
  // Ranks that were asked before they knew what the signal means have not begun anything.
  const bool asked = is({75, 128 + SIGUSR1, 128 + SIGUSR2});
  const std::string why =
      asked ? "stopped and saved" : "exit code " + std::to_string(exit_code) + ": " + meaning(exit_code);
  if (state == JobState::kQueued) return {Action::kNothing, why + "; Slurm has queued the job again"};
  if (starts > max_restarts)
    return {Action::kStop, why + "; no newer checkpoint in " + std::to_string(starts) +
                               (starts == 1 ? " start" : " starts in a row") + " (--max-restarts " +
                               std::to_string(max_restarts) + ")"};
  return {Action::kRequeue, why};
}

void begin_job(const std::string& run_directory, const std::string& mpi) {
  const int64_t tasks = number(variable("SLURM_NTASKS"));  // not said where the number of nodes is a range
  append_job_log(run_directory, {{"event", "started"},
                                 {"job", id_of_this_job()},
                                 {"restarts", number(variable("SLURM_RESTART_COUNT"))},
                                 {"hosts", variable("SLURM_JOB_NODELIST")},
                                 {"nodes", number(variable("SLURM_JOB_NUM_NODES"))},
                                 {"ranks", tasks > 0 ? nlohmann::json(tasks) : nlohmann::json()},
                                 {"step", step_of(newest_step(run_directory))}});
  ToolEnd known = run_tool({"srun", "--mpi=list"});
  if (known.code == 0 && known.said.empty()) known.said = known.errors;  // where Slurm before 21.08 writes it
  if (lists(known.said, mpi)) return;
  const std::string message =
      known.code == 127 ? "there is no srun on the PATH of the batch job"
                        : "srun cannot start MPI programs by --mpi=" + mpi + " here; it knows: " + known.said +
                              "\nEach task would be a job of its own. muster needs a Slurm that was built with PMIx; "
                              "ask the site, or set `mpi` in a site profile";
  append_job_log(run_directory, {{"event", "ended"},
                                 {"job", id_of_this_job()},
                                 {"exit_code", 2},
                                 {"step", step_of(newest_step(run_directory))},
                                 {"decision", "stopped"},
                                 {"reason", "srun has no " + mpi}});
  throw Error(ExitCode::kUsage, message);
}

int end_job(const std::string& run_directory, int exit_code, int max_restarts) {
  const std::string job = id_of_this_job(), task = variable("SLURM_ARRAY_TASK_ID");
  const int64_t newest = newest_step(run_directory);
  const ToolEnd shown = job.empty() ? ToolEnd{1, "", ""} : run_tool({"scontrol", "show", "job", "-o", job});
  const JobState state =
      shown.code == 0 ? job_state(shown.said, number(variable("SLURM_RESTART_COUNT"))) : JobState::kUnknown;
  const Decision decision =
      decide(exit_code, state, starts_without_progress(read_job_log(run_directory), newest), max_restarts);
  const auto note = [&](const std::string& what, const std::string& reason) {
    append_job_log(run_directory, {{"event", "ended"},
                                   {"job", job},
                                   {"exit_code", exit_code},
                                   {"step", step_of(newest)},
                                   {"decision", what},
                                   {"reason", reason}});
  };
  const std::string where = newest < 0 ? "no checkpoint yet" : "newest checkpoint: step " + std::to_string(newest);
  const auto say = [&](const std::string& text) {
    std::fprintf(stderr, "muster: job %s: %s (%s)\n", job.c_str(), text.c_str(), where.c_str());
  };
  if (decision.action == Action::kDone || decision.action == Action::kNothing) {
    note(decision.action == Action::kDone ? "done" : "requeued", decision.reason);
    say(decision.reason);
    return 0;
  }
  if (decision.action == Action::kStop) {
    note("stopped", decision.reason);
    say(decision.reason + ", so it is not queued again");
    return exit_code;
  }
  // Written first: Slurm ends this process as soon as it has queued the job again.
  note("requeued", decision.reason);
  say(decision.reason + ", so it is queued again");
  const ToolEnd requeued = job.empty() ? ToolEnd{1, "this is no Slurm job: SLURM_JOB_ID is not set", ""}
                                       : run_tool({"scontrol", "requeue", job});
  if (requeued.code == 0) return 0;
  const std::string failed = "scontrol requeue " + job + ": " + requeued.said;
  const bool ended =
      state == JobState::kPreempted || state == JobState::kTimedOut;  // for good, so the same job once more
  std::string next;
  if (ended) {
    try {
      next = submit_again(run_directory);
    } catch (const Error& error) {
      say(error.what());
    }
  }
  if (!next.empty()) {
    append_job_log(run_directory, {{"event", "resubmitted"}, {"job", next}, {"after", job}});
    say(failed + "; submitted again as job " + next);
    return 0;
  }
  note("stopped", failed);
  say(failed + "\nIt could not be queued again. To go on with the run: sbatch " +
      (task.empty() ? "" : "--array=" + task + " ") + shell_quoted(run_directory + "/job.sbatch"));
  return exit_code;
}

}  // namespace muster::launcher
