#include "launcher/launch/restarts.h"

#include <algorithm>

#include "checkpoints/checkpoint.h"
#include "core/config/load.h"

namespace muster::launcher {
namespace {

using distributed::ExitCode;

struct TrainWords {
  std::string config;
  std::string run_directory;
  std::vector<std::string> overrides;
  bool resumes = false;
};

// What launch must know of train's command line; train itself checks it.
TrainWords read_train_words(const std::vector<std::string>& command) {
  static const std::vector<std::string> with_value{"--set", "--run-dir", "--resume", "--init-from", "--max-steps", "--time-limit"};
  TrainWords words;
  for (size_t i = 1; i < command.size(); ++i) {
    std::string name = command[i], value;
    if (name.empty() || name[0] != '-') {
      if (words.config.empty()) words.config = name;
      continue;
    }
    if (const size_t equals = name.find('='); equals != std::string::npos) {
      value = name.substr(equals + 1);
      name.resize(equals);
    } else if (std::count(with_value.begin(), with_value.end(), name) && i + 1 < command.size()) {
      value = command[++i];
    }
    if (name == "--set") words.overrides.push_back(value);
    if (name == "--run-dir") words.run_directory = value;
    if (name == "--resume") words.resumes = true;
  }
  return words;
}

}  // namespace

int code_of_job(int code) { return code > 128 ? static_cast<int>(ExitCode::kPeerFailed) : code; }

bool is_worth_a_restart(int code) {
  return code == static_cast<int>(ExitCode::kInternal) || code == static_cast<int>(ExitCode::kIo) || code == static_cast<int>(ExitCode::kPeerFailed);
}

std::string run_directory_of(const std::vector<std::string>& command) {
  const TrainWords words = read_train_words(command);
  if (command[0] == "resume") return words.config;
  if (!words.run_directory.empty()) return words.run_directory;
  return "runs/" + config::load_experiment(words.config, words.overrides).experiment.name();
}

std::vector<std::string> continued(const std::vector<std::string>& command) {
  auto words = command;
  if (command[0] == "train" && !read_train_words(command).resumes) words.insert(words.end(), {"--resume", "auto"});
  return words;
}

int64_t newest_step(const std::string& run_directory) {
  const auto found = checkpoints::find_checkpoints(run_directory + "/checkpoints");
  return found.empty() ? -1 : static_cast<int64_t>(found.front().step);
}

}  // namespace muster::launcher
