#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace muster::launcher {

// RUN/submission.json: what `muster submit` was asked for and the job's number. An empty object where there is none.
nlohmann::json read_submission(const std::string& run_directory);

// The history of a run's Slurm jobs: RUN/logs/jobs.jsonl, one row each time one is submitted, starts or ends.
//   {"event": "submitted", "time"}                              by a person; sbatch is called after it
//   {"event": "resubmitted", "time", "job", "after"}            by a job that could not be requeued
//   {"event": "started", "time", "job", "restarts", "hosts", "nodes", "ranks", "step", "progress"}
//   {"event": "ended", "time", "job", "exit_code", "step", "decision", "reason"}   decision: done, requeued,
//   resubmitted or stopped
// "step": the newest checkpoint's, null before the first; "progress": run_progress(); "time": UTC.
std::vector<nlohmann::json> read_job_log(const std::string& run_directory);

// Adds a row, with the time. Throws Error(kIo).
void append_job_log(const std::string& run_directory, nlohmann::json row);

// How many starts in a row, since the run was last submitted by a person, had at least run_progress() `now`.
int starts_without_progress(const std::vector<nlohmann::json>& rows, int64_t now);

// The newest checkpoint's step as a row holds it: null where there is none.
nlohmann::json step_of(int64_t newest);

// What both files say of a run's Slurm jobs.
struct JobHistory {
  std::string job_name, job;                       // as submitted; empty: it was not
  int64_t started = 0, requeued = 0, crashed = 0;  // jobs
  std::string decision, reason;                    // of the last job that ended, until another one starts
  bool queued = false;                             // a job was going to continue the run, by the last row
  bool in_job = false;                             // a job has started, and has not ended yet
};
JobHistory job_history(const std::string& run_directory);

}  // namespace muster::launcher
