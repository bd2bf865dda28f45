#include "launcher/search/optuna_process.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/error.h"
#include "launcher/work/python.h"
#include "launcher/work/work_source.h"

namespace muster::embedded {
extern const std::string_view search_boot_py, search_journal_py, search_sampling_py, search_optuna_process_py;
}

namespace muster::launcher {
namespace {

using nlohmann::json;

constexpr int kPatienceSeconds = 600;  // a storage on a busy file server may be slow; longer than that it hangs
constexpr int kMostDeaths = 5;         // in a row

Error failure(const json& answer) {
  const std::string kind = answer.value("kind", "internal");
  const auto code = kind == "config" ? ExitCode::kBadConfig : kind == "storage" ? ExitCode::kIo : ExitCode::kInternal;
  return Error(code, "the search's study: " + answer.value("error", "no reason given"));
}

}  // namespace

TrialCounts counts_of(const json& standing) {
  const auto count = [&](const char* state) { return standing["counts"][state].get<int64_t>(); };
  return {count("COMPLETE"), count("PRUNED"), count("FAIL"), count("RUNNING")};
}

OptunaProcess::OptunaProcess(json opening) : opening_(std::move(opening)) {
  opening_["op"] = "open";
  start();
}

void OptunaProcess::start() {
  ChildOptions options;
  // Terminals and Slurm signal the whole process group when a job is to stop. The ranks decide what that means, and
  // need this process until they have.
  options.blocked = stop_signals();
  const auto command = python_command({embedded::search_boot_py, embedded::search_journal_py,
                                       embedded::search_sampling_py, embedded::search_optuna_process_py});
  process_.emplace(command, options);
  if (const int error = process_->start_error(); error != 0)
    throw Error(ExitCode::kBadConfig, fmt::format("cannot run Python for Optuna ({}): {}. {}", command[0],
                                                  std::strerror(error), kPythonHint));
  auto answer = exchange(opening_);
  if (!answer)
    throw Error(ExitCode::kBadConfig,
                fmt::format("Optuna's process ({}) ended before it answered; what it wrote is above", command[0]));
  opened_ = std::move(*answer);
}

// Nothing when the process is gone or hangs.
std::optional<json> OptunaProcess::exchange(const json& request) {
  const auto line = process_->exchange(message_text(request), kPatienceSeconds);
  const json answer = line ? json::parse(*line, nullptr, false) : json();
  if (!answer.is_object()) return std::nullopt;
  if (!answer.value("ok", false)) throw failure(answer);
  return answer;
}

json OptunaProcess::request(const json& request, const std::function<json()>& instead) {
  for (int deaths = 1;; ++deaths) {
    if (auto answer = exchange(request)) return *answer;
    if (deaths > kMostDeaths)
      throw Error(ExitCode::kInternal, fmt::format("Optuna's process has died {} times in a row at: {}", deaths,
                                                   message_text(request).substr(0, 200)));
    start();
    if (const json other = instead ? instead() : json(); !other.is_null()) return this->request(other);
  }
}

json OptunaProcess::ask(int64_t limit, const std::vector<int64_t>& known) {
  // It may have begun the trial before it died.
  const auto adopt = [&]() -> json {
    for (const auto& trial : opened_["running"])
      if (trial.value("job", "") == opening_["job"] &&
          std::find(known.begin(), known.end(), trial["number"].get<int64_t>()) == known.end())
        return {{"op", "adopt"}, {"number", trial["number"]}};
    return nullptr;
  };
  return request({{"op", "ask"}, {"limit", limit}}, adopt);
}

}  // namespace muster::launcher
