#include "launcher/launch/restarts.h"

#include <algorithm>
#include <filesystem>

#include "checkpoints/checkpoint.h"
#include "core/config/load.h"
#include "launcher/search/spec.h"
#include "launcher/study/spec.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;

struct Words {
  std::string file;
  std::string directory;
  std::vector<std::string> overrides;
  bool resumes = false;
};

bool is_search(const std::vector<std::string>& command) {
  return command[0] == "search" && command.size() > 1 && command[1] == "run";
}

// What launch must know of a command line; the command itself checks it.
Words read_words(const std::vector<std::string>& command) {
  static const std::vector<std::string> with_value{"--set",    "--run-dir",   "--search-dir", "--study-dir",
                                                   "--resume", "--init-from", "--max-steps",  "--time-limit"};
  Words words;
  for (size_t i = is_search(command) ? 2 : 1; i < command.size(); ++i) {
    std::string name = command[i], value;
    if (name.empty() || name[0] != '-') {
      if (words.file.empty()) words.file = name;
      continue;
    }
    if (const size_t equals = name.find('='); equals != std::string::npos) {
      value = name.substr(equals + 1);
      name.resize(equals);
    } else if (std::count(with_value.begin(), with_value.end(), name) && i + 1 < command.size()) {
      value = command[++i];
    }
    if (name == "--set") words.overrides.push_back(value);
    if (name == "--run-dir" || name == "--search-dir" || name == "--study-dir") words.directory = value;
    if (name == "--resume") words.resumes = true;
  }
  return words;
}

}  // namespace

int code_of_job(int code) { return code > 128 ? static_cast<int>(ExitCode::kPeerFailed) : code; }

bool is_worth_a_restart(int code) {
  return code == static_cast<int>(ExitCode::kInternal) || code == static_cast<int>(ExitCode::kIo) ||
         code == static_cast<int>(ExitCode::kPeerFailed);
}

bool can_go_on(const std::vector<std::string>& command) {
  return command[0] == "train" || command[0] == "resume" || command[0] == "study" || is_search(command);
}

std::string directory_of(const std::vector<std::string>& command) {
  const Words words = read_words(command);
  if (command[0] == "resume") return words.file;
  if (!words.directory.empty()) return words.directory;
  if (is_search(command)) return "runs/" + load_search(words.file).search.name();
  if (command[0] == "study") return "runs/" + load_study(words.file).study.name();
  return "runs/" + config::load_experiment(words.file, words.overrides).experiment.name();
}

std::vector<std::string> continued(const std::vector<std::string>& command) {
  auto words = command;
  if (command[0] == "train" && !read_words(command).resumes) words.insert(words.end(), {"--resume", "auto"});
  return words;
}

int64_t newest_step(const std::string& run_directory) {
  const auto found = checkpoints::find_checkpoints(run_directory + "/checkpoints");
  return found.empty() ? -1 : static_cast<int64_t>(found.front().step);
}

Advance advance_of(const std::vector<std::string>& command) {
  const std::string directory = directory_of(command);
  if (command[0] == "train" || command[0] == "resume") {
    const int64_t step = newest_step(directory);
    return {step, step < 0 ? "no checkpoint yet" : "newest checkpoint: step " + std::to_string(step)};
  }
  // Runs that have ended have no checkpoints any more, but the one that follows counts for more than all steps.
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
          std::to_string(runs) +
              (runs == 1 ? " run begun, newest checkpoint: step " : " runs begun, newest checkpoint: step ") +
              std::to_string(newest)};
}

}  // namespace muster::launcher
