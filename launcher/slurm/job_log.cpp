#include "launcher/slurm/job_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/text.h"
#include "launcher/launch/restarts.h"

namespace muster::launcher {

nlohmann::json read_submission(const std::string& run_directory) {
  return read_json_object(run_directory + "/submission.json");
}

std::vector<nlohmann::json> read_job_log(const std::string& run_directory) {
  auto rows = json_rows(read_file_if_there(run_directory + "/logs/jobs.jsonl", 64 << 20).value_or("") + "\n");
  const auto is_none = [](const nlohmann::json& row) { return !member_of(row, "event").is_string(); };
  rows.erase(std::remove_if(rows.begin(), rows.end(), is_none), rows.end());
  return rows;
}

void append_job_log(const std::string& run_directory, nlohmann::json row) {
  row["time"] = utc_now();
  const std::string path = run_directory + "/logs/jobs.jsonl";
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666);
  // A row whose writer was killed must not take the next one with it.
  char last = '\n';
  const off_t size = file < 0 ? 0 : ::lseek(file, 0, SEEK_END);
  if (size > 0 && ::pread(file, &last, 1, size - 1) != 1) last = '\n';
  int error = file < 0 ? errno : try_write_all(file, fmt::format("{}{}\n", last == '\n' ? "" : "\n", json_text(row)));
  if (error == 0 && ::fsync(file) != 0) error = errno;
  if (file >= 0) ::close(file);
  if (error != 0) throw Error(ExitCode::kIo, fmt::format("{}: cannot be written: {}", path, std::strerror(error)));
}

int starts_without_progress(const std::vector<nlohmann::json>& rows, int64_t now) {
  int starts = 0;
  for (auto row = rows.rbegin(); row != rows.rend() && (*row)["event"] != "submitted"; ++row) {
    if ((*row)["event"] != "started") continue;
    // Rows of older programs have the step only.
    const auto& progress = member_of(*row, row->contains("progress") ? "progress" : "step");
    if ((progress.is_number_integer() ? progress.get<int64_t>() : kNoProgress) < now) break;
    ++starts;
  }
  return starts;
}

nlohmann::json step_of(int64_t newest) { return newest < 0 ? nlohmann::json() : nlohmann::json(newest); }

JobHistory job_history(const std::string& run_directory) {
  JobHistory history;
  const auto submission = read_submission(run_directory);
  history.job_name = text_in(submission, "job_name");
  const std::string submitted = text_in(submission, "job");
  history.job = submitted;  // the script may have been requeued by hand
  for (const auto& row : read_job_log(run_directory)) {
    const std::string event = row["event"], job = text_in(row, "job");
    if (event == "started") ++history.started;
    // The row of a submission has no number: it is written before sbatch gives one.
    if (event == "submitted") history.job = submitted;
    if ((event == "started" || event == "resubmitted") && !job.empty()) history.job = job;
    if (event == "started" || event == "submitted") history.decision.clear(), history.reason.clear();
    if (event == "submitted" || event == "resubmitted") history.queued = true;
    if (event == "started" || event == "ended") history.in_job = event == "started", history.queued = false;
    if (event != "ended") continue;
    history.decision = text_in(row, "decision");
    history.reason = text_in(row, "reason");
    history.queued = history.decision == "requeued";
    if (history.queued) ++history.requeued;
    const int code = row.contains("exit_code") && row["exit_code"].is_number() ? row["exit_code"].get<int>() : 0;
    if (code != 0 && code != static_cast<int>(ExitCode::kRequeue) && code != 128 + SIGUSR1 && code != 128 + SIGUSR2)
      ++history.crashed;
  }
  return history;
}

}  // namespace muster::launcher
