#include "launcher/search/trials.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "base/json.h"
#include "core/config/stored.h"
#include "core/run/results.h"
#include "core/run/stop.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Thrown on every rank of a group when Optuna stops the trial early.
struct Pruned {};

class Trials {
 public:
  Trials(const SearchDirectory& directory, WorkGroup& group, const std::string& command_line)
      : directory_(directory), search_(directory.spec().search), group_(group), command_line_(command_line) {}

  void train(int64_t number, const json& values) {
    begun_ = std::chrono::steady_clock::now();
    double value = std::nan("");
    bool pruned = false;
    const auto work = [&] {
      try {
        value = train_repeats(number, values);
      } catch (const Pruned&) {
        pruned = true;
      }
    };
    const Ending ending = group_.attempt(
        work, fmt::format("it took longer than budget.trial_minutes ({})", search_.budget().trial_minutes()));
    if (ending.kind == Ending::kStopped || ending.kind == Ending::kElsewhere) {
      group_.ask({{"op", "leave"}, {"number", number}});
      return;
    }
    if (pruned) value = last_value_;
    std::string reason = ending.reason;
    if (ending.kind == Ending::kDone && !pruned && !std::isfinite(value))
      reason = search_.objective().metric() + " is not a finite number";
    const bool failed = ending.kind == Ending::kFailed || !reason.empty();
    const json answer = group_.ask({{"op", "tell"},
                                    {"number", number},
                                    {"state", failed   ? "FAIL"
                                              : pruned ? "PRUNED"
                                                       : "COMPLETE"},
                                    {"value", number_or_null(value)},
                                    {"reason", reason}});
    if (!group_.leads()) return;
    directory_.tidy(number, answer["keep_weights"]);
    for (const auto& other : answer["drop_weights"]) directory_.tidy(other, false);
  }

 private:
  // Mean over the repeats of the objective of the best weights. Optuna gets each validation of the first repeat, and at
  // the end of each further one the mean so far, at the number of epochs trained until then: at any step it compares
  // trials that have been trained equally often, and never what a repeat is worth half way.
  double train_repeats(int64_t number, const json& values) {
    const bool by_fold = search_.repeats().folds() > 0;
    const uint32_t count = directory_.repeats();
    double sum = 0;
    last_value_ = std::nan("");
    for (uint32_t repeat = 0; repeat < count; ++repeat) {
      config::LoadedExperiment loaded;
      const std::string run = directory_.run(number, repeat);
      bool is_known = false;
      distributed::run_on_all_ranks(group_.ranks(), [&] {
        auto overrides = overrides_of(values);
        overrides.push_back("name=" + search_.name() + "-" + fs::path(directory_.trial(number)).filename().string());
        if (by_fold)
          overrides.push_back(fmt::format("data.split.fold={}", repeat));
        else if (repeat > 0)
          overrides.push_back(fmt::format("seed={}", directory_.spec().base.seed() + repeat));
        loaded = config::load_stored_experiment(directory_.file("base.txtpb"), overrides);
        if (group_.leads()) is_known = directory_.recover(run, loaded.experiment);
      });
      training::TrainOptions options;
      options.run_directory = run;
      options.begin = training::Begin::kAuto;
      options.command_line = command_line_;
      const double used = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun_).count();
      if (const double minutes = search_.budget().trial_minutes(); minutes > 0)
        options.time_limit = std::max(1e-3, 60 * minutes - used);  // 0 would be no limit
      if (group_.ranks().all_gather_bytes(is_known ? "known" : "")[0] != "known")
        group_.trainer().train(loaded, options, training::InProcessTrainer::Splits::kValidation,
                               [&](const json& row) { validated(number, repeat, row); });
      std::string value;  // read by one rank: a file server may show it to others later
      distributed::run_on_all_ranks(group_.ranks(), [&] {
        if (group_.leads()) value = json(run::read_result(run).best_value).dump();
      });
      const json best = json::parse(group_.ranks().all_gather_bytes(value)[0]);
      sum += best.is_null() ? std::nan("") : best.get<double>();
      if (!std::isfinite(sum)) return sum;
      if (repeat > 0)
        report(number, (repeat + 1) * static_cast<int64_t>(search_.budget().epochs()), sum / (repeat + 1));
    }
    return sum / count;
  }

  void validated(int64_t number, uint32_t repeat, const json& row) {
    const std::string& metric = search_.objective().metric();
    const json& value = metric == "loss" ? row["loss"] : row["metrics"][metric];
    if (repeat == 0)
      report(number, row["epoch"], value.is_number() ? value.get<double>() : std::nan(""));
    else
      group_.stop_if_asked(group_.ask({{"op", "report"}}));
  }

  // Reports to Optuna, and ends the trial if it says so.
  void report(int64_t number, int64_t step, double value) {
    last_value_ = value;
    const json answer =
        group_.ask({{"op", "report"}, {"number", number}, {"step", step}, {"value", number_or_null(value)}});
    if (answer["prune"]) throw Pruned{};
    group_.stop_if_asked(answer);
  }

  const SearchDirectory& directory_;
  const Search& search_;
  WorkGroup& group_;
  const std::string& command_line_;
  std::chrono::steady_clock::time_point begun_;  // of the trial, in this job
  double last_value_ = 0;
};

}  // namespace

void run_trials(const SearchDirectory& directory, WorkGroup& group, const std::string& command_line,
                const std::function<void(bool stopped)>& finalize) {
  Trials trials(directory, group, command_line);
  group.run([&](const json& task) { trials.train(task["number"], task["values"]); }, finalize, command_line);
}

}  // namespace muster::launcher
