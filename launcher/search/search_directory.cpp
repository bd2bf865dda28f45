#include "launcher/search/search_directory.h"

#include <fmt/format.h>
#include <google/protobuf/util/message_differencer.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <sstream>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/files.h"
#include "core/config/resolved_text.h"
#include "core/config/stored.h"
#include "core/run/results.h"
#include "launcher/work/work_group.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;
using google::protobuf::util::MessageDifferencer;

// What may differ between jobs on one search: how long, and what is kept.
Search comparable(Search search) {
  search.clear_budget();
  search.clear_keep_weights();
  search.clear_ranks_per_trial();
  search.clear_base();
  search.clear_set();
  return search;
}

}  // namespace

SearchDirectory::SearchDirectory(const std::string& path, const SearchSpec& spec) : path_(path) {
  std::error_code error;
  if (fs::exists(path, error) && !fs::is_empty(path, error)) {
    join(spec);
    return;
  }
  // It appears whole: two jobs may begin at once.
  const bool is_ours = make_folder_atomically(path, [&](const std::string& folder) {
    for (const char* name : {"trials", "logs"}) make_folders(fmt::format("{}/{}", folder, name));
    write_file_atomically(folder + "/base.txtpb", config::resolved_text(spec.base));
    write_file_atomically(folder + "/search.txtpb", resolved_text(spec.search));
  });
  if (is_ours) {
    spec_ = spec;
    return;
  }
  join(spec);
}

void SearchDirectory::join(const SearchSpec& spec) {
  *this = SearchDirectory(path_);
  std::string differences;
  std::string lines;  // "modified: objective.metric: "loss" -> "WA"", also where a value is there on one side only
  MessageDifferencer comparison;
  comparison.ReportDifferencesToString(&lines);
  if (!comparison.Compare(comparable(spec_.search), comparable(spec.search)))
    for (std::istringstream text(lines); std::getline(text, lines);) differences += "\n  " + lines;
  // An earlier version's search continues as it began: its base experiment is the one that is stored.
  const auto kept = config::earlier_choices(spec_.base, spec.base);
  for (const auto& difference : config::differences(spec_.base, spec.base)) {
    const auto is_kept = [&](const auto& choice) { return choice.path == difference.path; };
    if (std::any_of(kept.begin(), kept.end(), is_kept)) continue;
    differences += fmt::format("\n  {}: {} -> {}", difference.path, difference.before, difference.after);
  }
  if (!differences.empty())
    throw Error(ExitCode::kBadConfig,
                fmt::format("{} holds another search; its trials could not be compared with these:{}\n"
                            "Give another --search-dir, or undo the change.",
                            path_, differences));
  // These may change.
  *spec_.search.mutable_budget() = spec.search.budget();
  spec_.search.set_keep_weights(spec.search.keep_weights());
  spec_.search.set_ranks_per_trial(spec.search.ranks_per_trial());
  write_file_atomically(file("search.txtpb"), resolved_text(spec_.search));
}

SearchDirectory::SearchDirectory(const std::string& path) : path_(path) {
  if (!fs::is_regular_file(file("search.txtpb")) || !fs::is_regular_file(file("base.txtpb")))
    throw Error(ExitCode::kUsage,
                path +
                    " is not the directory of a search: it has no search.txtpb and base.txtpb. `muster search run "
                    "SPEC` makes one");
  spec_.search = parse_search(file("search.txtpb"));
  spec_.base = config::load_stored_experiment(file("base.txtpb")).experiment;
}

std::string SearchDirectory::storage() const {
  return spec_.search.storage().empty() ? file("journal.log") : spec_.search.storage();
}

std::string SearchDirectory::trial(int64_t number) const { return file(fmt::format("trials/{:06}", number)); }

uint32_t SearchDirectory::repeats() const {
  const auto& repeats = spec_.search.repeats();
  return repeats.folds() > 0 ? repeats.folds() : repeats.seeds();
}

std::string SearchDirectory::run(int64_t number, uint32_t repeat) const {
  return trial(number) + (repeats() > 1 ? fmt::format("/repeat-{}", repeat) : "");
}

bool SearchDirectory::recover(const std::string& run, const config::Experiment& experiment) const {
  if (!fs::exists(run + "/config.txtpb")) return false;
  const auto there = config::load_stored_experiment(run + "/config.txtpb").experiment;
  std::string differences;
  for (const auto& difference : config::differences(there, experiment))
    differences +=
        fmt::format("\n  {}: {} there, {} in the journal", difference.path, difference.before, difference.after);
  if (!differences.empty())
    throw Error(
        ExitCode::kIo,
        fmt::format("{} was trained with other values than {} says:{}\nOne of the two was replaced. Restore it from "
                    "a copy, or move {} away to have the trial trained again",
                    run, storage(), differences, run));
  if (fs::exists(run + "/result.json")) return true;
  if (!fs::exists(run + "/environment.json")) fs::remove_all(run);  // tidied, so it cannot be resumed
  return false;
}

void SearchDirectory::require_value(int64_t number, double value) const {
  double sum = 0;
  for (uint32_t repeat = 0; repeat < repeats(); ++repeat) {
    if (!fs::exists(run(number, repeat) + "/result.json")) return;  // removed by somebody: nothing to compare
    sum += run::read_result(run(number, repeat)).best_value;
  }
  const double mean = sum / repeats();
  if (std::abs(mean - value) <= 1e-9 * std::max(std::abs(mean), std::abs(value))) return;
  throw Error(
      ExitCode::kIo,
      fmt::format("trial {}: {} says {:.9g}, but the result in {} is {:.9g}. One of the two was replaced: restore it "
                  "from a copy, or start again in another --search-dir",
                  number, storage(), value, trial(number), mean));
}

void SearchDirectory::tidy(int64_t number, bool keep_weights) const {
  std::error_code ignored;
  const auto tidy_one = [&](const std::string& run) {
    std::set<std::string> kept{"config.txtpb", "metrics.jsonl", "predictions-valid.csv", "result.json"};
    if (fs::exists(run + "/result.json", ignored)) kept.insert("environment.json");  // see recover()
    tidy_run(run, kept, keep_weights);
  };
  // A trial that is trained several times has a run for each.
  for (const auto& entry : fs::directory_iterator(trial(number), ignored))
    if (entry.path().filename().string().rfind("repeat-", 0) == 0) tidy_one(entry.path());
  if (fs::exists(trial(number) + "/config.txtpb", ignored)) tidy_one(trial(number));
}

}  // namespace muster::launcher
