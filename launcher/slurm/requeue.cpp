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

// What Slurm says of the job that asks.
enum class JobState {
  kRunning,    // it can be requeued
  kCancelled,  // somebody has cancelled it
  kTimedOut,   // its time limit was reached before it had ended
  kPreempted,  // it makes room for another
  kQueued,     // Slurm has requeued it by itself
  kUnknown,    // Slurm does not answer
};

enum class Action { kDone, kRequeue, kStop, kNothing };

struct Decision {
  Action action;
  std::string reason;  // one sentence without its full stop
};

int64_t number(const std::string& text) { return parse_integer(text).value_or(0); }

std::string meaning(int code) {
  static const std::map<int, const char*> meanings{{2, "the command line or the allocation is wrong"},
                                                   {65, "a data or weights file is wrong"},
                                                   {70, "training failed"},
                                                   {74, "a disk could not be read or written"},
                                                   {76, "a rank was lost"},
                                                   {78, "the experiment is wrong"}};
  if (const auto known = meanings.find(code); known != meanings.end()) return known->second;
  return code > 128 ? fmt::format("ended by signal {}", code - 128) : "srun failed";
}

// From the answer of `scontrol show job -o`. restarts: how often it had been requeued when this process began.
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
  const auto limit = parse_duration(fields["TimeLimit"]), ran = parse_duration(fields["RunTime"]);
  if (state == "COMPLETING" && limit && ran >= limit) return JobState::kTimedOut;
  return JobState::kCancelled;
}

// What becomes of a job whose srun ended with `exit_code`. `starts`: as starts_without_progress().
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

void record_end(const std::string& run_directory, int64_t newest, int exit_code, const std::string& decision,
                const std::string& reason) {
  append_job_log(run_directory, {{"event", "ended"},
                                 {"job", slurm_job_id()},
                                 {"exit_code", exit_code},
                                 {"step", step_of(newest)},
                                 {"decision", decision},
                                 {"reason", reason}});
}

}  // namespace

void begin_job(const std::string& run_directory, const std::string& mpi) {
  const int64_t newest = newest_step(run_directory);
  const int64_t tasks = number(variable("SLURM_NTASKS"));  // not set where the number of nodes is a range
  append_job_log(run_directory, {{"event", "started"},
                                 {"job", slurm_job_id()},
                                 {"restarts", number(variable("SLURM_RESTART_COUNT"))},
                                 {"hosts", variable("SLURM_JOB_NODELIST")},
                                 {"nodes", number(variable("SLURM_JOB_NUM_NODES"))},
                                 {"ranks", tasks > 0 ? nlohmann::json(tasks) : nlohmann::json()},
                                 {"step", step_of(newest)},
                                 {"progress", run_progress(run_directory, newest)}});
  const SrunMpi offered = ask_srun_for_mpi();
  if (offered.offers(mpi)) return;
  record_end(run_directory, newest, 2, "stopped", fmt::format("srun has no {}", mpi));
  if (offered.exit_code == 127) throw Error(ExitCode::kUsage, "there is no srun on the PATH of the batch job");
  throw Error(ExitCode::kUsage,
              fmt::format("srun cannot start MPI programs by --mpi={} here; it knows: {}\nEach task would be a job of "
                          "its own. muster needs a Slurm that was built with PMIx; ask the site, or set `mpi` in a "
                          "site profile",
                          mpi, offered.text));
}

int end_job(const std::string& run_directory, int exit_code, int max_restarts) {
  const std::string job = slurm_job_id(), task = variable("SLURM_ARRAY_TASK_ID");
  const int64_t newest = newest_step(run_directory);
  JobState state = JobState::kUnknown;
  if (!job.empty())
    if (const auto shown = run_slurm({"scontrol", "show", "job", "-o", job}); shown.code == 0)
      state = job_state(shown.output, number(variable("SLURM_RESTART_COUNT")));
  const auto [action, reason] =
      decide(exit_code, state,
             starts_without_progress(read_job_log(run_directory), run_progress(run_directory, newest)), max_restarts);
  const std::string where = newest < 0 ? "no checkpoint yet" : fmt::format("newest checkpoint: step {}", newest);
  const auto say = [&](const std::string& text) {
    std::fprintf(stderr, "muster: job %s: %s (%s)\n", job.c_str(), text.c_str(), where.c_str());
  };
  if (action == Action::kDone || action == Action::kNothing) {
    record_end(run_directory, newest, exit_code, action == Action::kDone ? "done" : "requeued", reason);
    say(reason);
    return 0;
  }
  if (action == Action::kStop) {
    record_end(run_directory, newest, exit_code, "stopped", reason);
    say(reason + ", so it is not requeued");
    return exit_code;
  }
  // Recorded first: Slurm ends this process as soon as it has requeued the job.
  record_end(run_directory, newest, exit_code, "requeued", reason);
  say(reason + ", so it is requeued");
  std::string failed = "this is not a Slurm job: SLURM_JOB_ID is not set";
  if (!job.empty()) {
    const auto requeued = run_slurm({"scontrol", "requeue", job});
    if (requeued.code == 0) return 0;
    failed = fmt::format("scontrol requeue {}: {}", job, requeued.answer());
  }
  std::string next;
  try {  // a job that has ended cannot be requeued, so its script is submitted once more
    if (state == JobState::kPreempted || state == JobState::kTimedOut) next = submit_again(run_directory);
  } catch (const Error& error) {
    say(error.what());
  }
  if (!next.empty()) {
    append_job_log(run_directory, {{"event", "resubmitted"}, {"job", next}, {"after", job}});
    say(fmt::format("{}; submitted again as job {}", failed, next));
    return 0;
  }
  record_end(run_directory, newest, exit_code, "stopped", failed);
  say(fmt::format("{}\nIt could not be requeued. To continue the run: sbatch {}{}", failed,
                  task.empty() ? "" : fmt::format("--array={} ", task), shell_quoted(run_directory + "/job.sbatch")));
  return exit_code;
}

}  // namespace muster::launcher
