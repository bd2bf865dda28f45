#include "launcher/slurm/requeue.h"

#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>

#include "base/error.h"
#include "base/text.h"
#include "launcher/launch/launch_environment.h"
#include "launcher/launch/restarts.h"
#include "launcher/slurm/job_log.h"
#include "launcher/slurm/submission.h"
#include "launcher/slurm/this_job.h"

namespace muster::launcher {
namespace {

using Action = Decision::Action;

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
      return code > 128 ? fmt::format("ended by signal {}", code - 128) : "srun failed";
  }
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
  // While a job is being ended it is COMPLETING, whatever the reason. If Slurm has requeued it (preemption, a lost
  // node), its count of restarts has grown already.
  if (state == "PENDING" || state == "REQUEUED" || number(fields["Restarts"]) > restarts) return JobState::kQueued;
  if (state == "PREEMPTED" || fields.count("PreemptTime")) return JobState::kPreempted;
  if (state == "TIMEOUT") return JobState::kTimedOut;
  // A cancelled job must not come back, although `scontrol requeue` would bring it back.
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
    return {Action::kStop,
            fmt::format("exit code {}: {}, which another start would not fix", exit_code, meaning(exit_code))};
  if (state == JobState::kCancelled) return {Action::kStop, "the job was cancelled"};
  // Ranks that were asked to stop before they had installed their handlers have not begun anything.
  const bool asked = is({75, 128 + SIGUSR1, 128 + SIGUSR2});
  const std::string why = asked ? "stopped and saved" : fmt::format("exit code {}: {}", exit_code, meaning(exit_code));
  if (state == JobState::kQueued) return {Action::kNothing, why + "; Slurm has requeued the job itself"};
  if (starts > max_restarts)
    return {Action::kStop, fmt::format("{}; no newer checkpoint in {}{} (--max-restarts {})", why,
                                       plural(starts, "start"), starts == 1 ? "" : " in a row", max_restarts)};
  return {Action::kRequeue, why};
}

void begin_job(const std::string& run_directory, const std::string& mpi) {
  const int64_t tasks = number(variable("SLURM_NTASKS"));  // not set where the number of nodes is a range
  append_job_log(run_directory, {{"event", "started"},
                                 {"job", slurm_job_id()},
                                 {"restarts", number(variable("SLURM_RESTART_COUNT"))},
                                 {"hosts", variable("SLURM_JOB_NODELIST")},
                                 {"nodes", number(variable("SLURM_JOB_NUM_NODES"))},
                                 {"ranks", tasks > 0 ? nlohmann::json(tasks) : nlohmann::json()},
                                 {"step", step_of(newest_step(run_directory))}});
  const SrunMpi offered = ask_srun_for_mpi();
  if (offered.offers(mpi)) return;
  const std::string message =
      offered.exit_code == 127
          ? "there is no srun on the PATH of the batch job"
          : fmt::format(
                "srun cannot start MPI programs by --mpi={} here; it knows: {}\nEach task would be a job of its "
                "own. muster needs a Slurm that was built with PMIx; ask the site, or set `mpi` in a site profile",
                mpi, offered.text);
  append_job_log(run_directory, {{"event", "ended"},
                                 {"job", slurm_job_id()},
                                 {"exit_code", 2},
                                 {"step", step_of(newest_step(run_directory))},
                                 {"decision", "stopped"},
                                 {"reason", fmt::format("srun has no {}", mpi)}});
  throw Error(ExitCode::kUsage, message);
}

int end_job(const std::string& run_directory, int exit_code, int max_restarts) {
  const std::string job = slurm_job_id(), task = variable("SLURM_ARRAY_TASK_ID");
  const int64_t newest = newest_step(run_directory);
  JobState state = JobState::kUnknown;
  if (!job.empty())
    if (const auto shown = run_slurm({"scontrol", "show", "job", "-o", job}); shown.code == 0)
      state = job_state(shown.output, number(variable("SLURM_RESTART_COUNT")));
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
  const std::string where = newest < 0 ? "no checkpoint yet" : fmt::format("newest checkpoint: step {}", newest);
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
    say(decision.reason + ", so it is not requeued");
    return exit_code;
  }
  // Recorded first: Slurm ends this process as soon as it has requeued the job.
  note("requeued", decision.reason);
  say(decision.reason + ", so it is requeued");
  std::string failed = "this is not a Slurm job: SLURM_JOB_ID is not set";
  if (!job.empty()) {
    const auto requeued = run_slurm({"scontrol", "requeue", job});
    if (requeued.code == 0) return 0;
    failed = fmt::format("scontrol requeue {}: {}", job, requeued.answer());
  }
  const bool ended = state == JobState::kPreempted ||
                     state == JobState::kTimedOut;  // this job cannot be requeued, so it is submitted once more
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
  say(fmt::format("{}\nIt could not be requeued. To continue the run: sbatch {}{}", failed,
                  task.empty() ? "" : fmt::format("--array={} ", task), shell_quoted(run_directory + "/job.sbatch")));
  return exit_code;
}

}  // namespace muster::launcher
