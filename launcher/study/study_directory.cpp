#include "launcher/study/study_directory.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "core/config/stored.h"
#include "core/run/run_lock.h"
#include "launcher/work/work_group.h"

namespace muster::launcher {

namespace fs = std::filesystem;
using nlohmann::json;

StudyDirectory::StudyDirectory(const std::string& path, StudySpec spec) : path_(path), spec_(std::move(spec)) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) throw Error(ExitCode::kIo, path_ + " cannot be made: " + error.message());
  require_same_settings();
}

void StudyDirectory::require_same_settings() const {
  for (const auto& cell : spec_.cells) {
    const std::string config = run(cell) + "/config.txtpb";
    if (!fs::exists(config)) continue;
    const auto differences =
        config::differences(config::load_stored_experiment(config).experiment, spec_.experiment(cell).experiment);
    if (differences.empty()) continue;
    std::string text =
        run(cell) +
        " was trained with other settings than the study now asks for, so its numbers could not be compared:";
    for (const auto& difference : differences)
      text += fmt::format("\n  {}: {} -> {}", difference.path, difference.before, difference.after);
    throw Error(ExitCode::kBadConfig,
                text + "\nGive another --study-dir, undo the change, or remove that folder to have it trained again.");
  }
}

bool StudyDirectory::is_trained(const Cell& cell) const { return fs::exists(run(cell) + "/result.json"); }

run::RunResult StudyDirectory::result(const Cell& cell) const {
  run::RunResult result;
  try {
    result = run::read_result(run(cell));
  } catch (const Error& damaged) {
    throw Error(damaged.code(), std::string(damaged.what()) + "; remove that run's folder to have it trained again");
  }
  if (result.test.empty())
    throw Error(
        ExitCode::kBadData,
        run(cell) + "/result.json: there is no test split, and a study compares by it (data.split, docs/data.md)");
  return result;
}

void StudyDirectory::tidy(const Cell& cell) const {
  try {
    const run::RunLock lock(run(cell));
    tidy_run(run(cell),
             {"config.txtpb", "environment.json", "lock", "metrics.jsonl", "predictions-test.csv", "result.json"},
             spec_.study.keep_weights());
  } catch (const Error& held) {
    if (held.code() != ExitCode::kUsage)
      throw;  // kUsage: another job reads it and will tidy it, or a file that is no lock is in the way
  }
}

void StudyDirectory::require_same_data() const {
  struct First {
    std::string hash, run;
  };
  std::map<std::string, First> seen;  // by data.path
  for (const auto& cell : spec_.cells) {
    if (!is_trained(cell)) continue;
    const std::string path = run(cell) + "/environment.json";
    std::ifstream file(path);
    const json environment = json::parse(file, nullptr, false);
    if (!environment.is_object())
      throw Error(ExitCode::kBadData,
                  path + ": cannot be read as JSON; remove that run's folder to have it trained again");
    const std::string hash = environment.value(json::json_pointer("/data/sha256"), "");
    const auto config = config::load_stored_experiment(run(cell) + "/config.txtpb").experiment;
    if (!config.data().has_path()) continue;  // built-in data is what its settings say
    const auto& first = seen.try_emplace(config.data().path(), First{hash, run(cell)}).first->second;
    if (first.hash != hash)
      throw Error(ExitCode::kBadData,
                  fmt::format("{} has changed during the study: {} and {} were trained on different data (data.sha256 "
                              "in environment.json). Remove the folders of the older ones to have them trained again.",
                              config.data().path(), first.run, run(cell)));
  }
}

}  // namespace muster::launcher
