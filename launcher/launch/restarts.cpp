#include "launcher/launch/restarts.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "checkpoints/checkpoint.h"
#include "core/config/load.h"
#include "core/training/frozen_features.h"
#include "launcher/search/spec.h"
#include "launcher/study/spec.h"

namespace muster::launcher {

namespace fs = std::filesystem;

int job_exit_code(int code) { return code > 128 ? static_cast<int>(ExitCode::kPeerFailed) : code; }

bool is_worth_a_restart(int code) {
  return code == static_cast<int>(ExitCode::kInternal) || code == static_cast<int>(ExitCode::kIo) ||
         code == static_cast<int>(ExitCode::kPeerFailed);
}

bool RankCommand::is_search() const { return arguments.size() > 1 && name() == "search" && arguments[1] == "run"; }

bool RankCommand::can_continue() const {
  return name() == "train" || name() == "resume" || name() == "study" || is_search();
}

std::string directory_of(const RankCommand& command) {
  if (!command.directory.empty()) return command.directory;
  if (command.is_search()) return "runs/" + load_search(command.file).search.name();
  if (command.name() == "study") return "runs/" + load_study(command.file).study.name();
  return "runs/" + config::load_experiment(command.file, command.overrides).experiment.name();
}

std::vector<std::string> continued(const RankCommand& command) {
  auto arguments = command.arguments;
  if (command.name() == "train" && !command.resumes) arguments.insert(arguments.end(), {"--resume", "auto"});
  return arguments;
}

int64_t newest_step(const std::string& run_directory) {
  const auto found = checkpoints::find_checkpoints(run_directory + "/checkpoints");
  return found.empty() ? -1 : static_cast<int64_t>(found.front().step);
}

int64_t run_progress(const std::string& run_directory, int64_t newest) {
  if (newest >= 0) return newest;
  return std::min<int64_t>(-1, kNoProgress + training::frozen_features_done(run_directory));
}

JobProgress progress_of(const RankCommand& command) {
  const std::string directory = directory_of(command);
  if (command.name() == "train" || command.name() == "resume") {
    const int64_t step = newest_step(directory);
    return {run_progress(directory, step),
            step < 0 ? "no checkpoint yet" : fmt::format("newest checkpoint: step {}", step)};
  }
  // Runs that have ended have no checkpoints any more, but each run that begins counts for more than all steps.
  constexpr int64_t kRun = 1000000000000;
  int64_t runs = 0, newest = 0;
  std::error_code ignored;
  for (auto entry = fs::recursive_directory_iterator(directory, ignored); entry != fs::recursive_directory_iterator();
       entry.increment(ignored)) {
    runs += entry->path().filename() == "config.txtpb";
    if (entry->path().filename() == "checkpoints")
      newest = std::max(newest, newest_step(entry->path().parent_path().string()));
  }
  return {runs * kRun + newest,
          fmt::format("{} run{} begun, newest checkpoint: step {}", runs, runs == 1 ? "" : "s", newest)};
}

}  // namespace muster::launcher
