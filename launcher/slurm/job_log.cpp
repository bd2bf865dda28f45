#include "launcher/slurm/job_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "core/run/environment.h"

namespace muster::launcher {

std::vector<nlohmann::json> read_job_log(const std::string& run_directory) {
  std::ifstream file(run_directory + "/logs/jobs.jsonl");
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(file, line);) {
    const auto row = nlohmann::json::parse(line, nullptr, false);
    if (row.is_object() && row.contains("event") && row["event"].is_string()) rows.push_back(row);
  }
  return rows;
}

void append_job_log(const std::string& run_directory, nlohmann::json row) {
  row["time"] = utc_now();
  const std::string path = run_directory + "/logs/jobs.jsonl";
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  // A row whose writer was killed must not take the next one with it.
  char last = '\n';
  const off_t size = file < 0 ? 0 : ::lseek(file, 0, SEEK_END);
  if (size > 0 && ::pread(file, &last, 1, size - 1) != 1) last = '\n';
  const std::string text =
      (last == '\n' ? "" : "\n") + row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  int error = file < 0 ? errno : try_write_all(file, text);
  if (error == 0 && ::fsync(file) != 0) error = errno;
  if (file >= 0) ::close(file);
  if (error != 0) throw Error(ExitCode::kIo, path + ": cannot be written: " + std::strerror(error));
}

int starts_without_progress(const std::vector<nlohmann::json>& rows, int64_t newest) {
  int starts = 0;
  for (auto row = rows.rbegin(); row != rows.rend() && (*row)["event"] != "submitted"; ++row) {
    if ((*row)["event"] != "started") continue;
    const auto& step = row->contains("step") ? (*row)["step"] : nlohmann::json();
    if ((step.is_number_integer() ? step.get<int64_t>() : -1) < newest) break;
    ++starts;
  }
  return starts;
}

nlohmann::json step_of(int64_t newest) { return newest < 0 ? nlohmann::json() : nlohmann::json(newest); }

}  // namespace muster::launcher
