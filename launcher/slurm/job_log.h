#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace muster::launcher {

// The history of a run's Slurm jobs: RUN/logs/jobs.jsonl, one row each time one is submitted, starts or ends.
//   {"event": "submitted", "time"}                              by a person; sbatch is called after it
//   {"event": "resubmitted", "time", "job", "after"}            by a job that could not be queued again
//   {"event": "started", "time", "job", "restarts", "hosts", "nodes", "ranks", "step"}
//   {"event": "ended", "time", "job", "exit_code", "step", "decision", "reason"}   decision: done, requeued,
//   resubmitted or stopped
// "step": the newest checkpoint's, null before the first; "time": UTC.
std::vector<nlohmann::json> read_job_log(const std::string& run_directory);

// Adds a row, with the time. Throws Error(kIo).
void append_job_log(const std::string& run_directory, nlohmann::json row);

// How many starts in a row, since the run was last submitted by a person, had nothing newer to go on with than the
// checkpoint of step `newest` (-1: none).
int starts_without_progress(const std::vector<nlohmann::json>& rows, int64_t newest);

// The newest checkpoint's step as a row has it: null where there is none.
nlohmann::json step_of(int64_t newest);

}  // namespace muster::launcher
