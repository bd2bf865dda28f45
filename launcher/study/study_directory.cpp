#include "launcher/study/study_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "core/config/stored.h"
#include "core/run/run_lock.h"
#include "launcher/work/work_group.h"

namespace muster::launcher {

namespace fs = std::filesystem;
using nlohmann::json;

StudyDirectory::StudyDirectory(const std::string& path, StudySpec spec) : path_(path), spec_(std::move(spec)) {
  for (const char* other : {"config.txtpb", "search.txtpb"})
    if (fs::exists(file(other)))
      throw Error(ExitCode::kUsage,
                  fmt::format("{} is the directory of a run or search (it has {}), not of a study: give another "
                              "--study-dir",
                              path_, other));
  make_folders(path_);
  for (const auto& cell : spec_.cells) {
    const std::string config = run(cell) + "/config.txtpb";
    if (!fs::exists(config)) continue;
    const auto stored = config::load_stored_experiment(config).experiment;
    // All cells of a study that an earlier version has begun are trained as the first one was.
    auto asked = spec_.experiment(cell).experiment;
    const auto choices = config::earlier_choices(stored, asked);
    for (const auto& choice : choices) spec_.study.add_set(choice.path + "=" + choice.before);
    if (!choices.empty()) asked = spec_.experiment(cell).experiment;
    auto differences = config::differences(stored, asked);
    differences.erase(std::remove_if(differences.begin(), differences.end(),
                                     [](const auto& difference) { return difference.path == "name"; }),
                      differences.end());
    if (differences.empty()) continue;
    std::string changes;
    for (const auto& difference : differences)
      changes += fmt::format("\n  {}: {} -> {}", difference.path, difference.before, difference.after);
    throw Error(ExitCode::kBadConfig,
                fmt::format("{} was trained with other settings than the study now asks for, so its numbers could not "
                            "be compared:{}\nGive another --study-dir, undo the change, or remove that folder to have "
                            "it trained again.",
                            run(cell), changes));
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
    throw Error(ExitCode::kBadData, run(cell) +
                                        "/result.json: there is no test split, by which a study compares "
                                        "(data.split, docs/data.md)");
  return result;
}

void StudyDirectory::tidy(const Cell& cell) const {
  try {
    const run::RunLock lock(run(cell));
    tidy_run(run(cell),
             {"config.txtpb", "environment.json", "lock", "metrics.jsonl", "predictions-test.csv",
              "predictions-valid.csv", "result.json"},
             spec_.study.keep_weights());
  } catch (const Error& held) {
    if (held.code() != ExitCode::kUsage)
      throw;  // kUsage: another job reads it and will tidy it, or a file that is no lock is in the way
  }
}

void StudyDirectory::require_same_data() const {
  std::map<std::string, std::pair<std::string, std::string>> seen;  // by data.path: hash and run
  for (const auto& cell : spec_.cells) {
    if (!is_trained(cell)) continue;
    const std::string path = run(cell) + "/environment.json";
    const json environment = parse_json(read_file_if_there(path, 64 << 20).value_or(""));
    if (!environment.is_object())
      throw Error(ExitCode::kBadData,
                  path + ": cannot be read as JSON; remove that run's folder to have it trained again");
    const std::string hash = environment.value(json::json_pointer("/data/sha256"), "");
    const auto config = config::load_stored_experiment(run(cell) + "/config.txtpb").experiment;
    if (!config.data().has_path()) continue;  // built-in data is what its settings say
    const auto& [first_hash, first_run] = seen.try_emplace(config.data().path(), hash, run(cell)).first->second;
    if (first_hash != hash)
      throw Error(ExitCode::kBadData,
                  fmt::format("{} has changed during the study: {} and {} were trained on different data (data.sha256 "
                              "in environment.json). Remove the folders of the older ones to have them trained again.",
                              config.data().path(), first_run, run(cell)));
  }
}

}  // namespace muster::launcher
