#include "launcher/search/trials.h"

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <new>

#include "core/config/load.h"
#include "core/training/stop.h"
#include "distributed/error.h"
#include "distributed/watchdog.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;
using distributed::Error;
using distributed::ExitCode;
using nlohmann::json;

// Thrown on every rank of a group when Optuna gives the trial up.
struct Pruned {};

enum class End { kTold, kLeft, kStopped };

class Group {
 public:
  Group(const SearchDirectory& directory, WorkSource* source, training::TrialTrainer& trainer, distributed::Communicator& group, const std::string& command_line)
      : directory_(directory), search_(directory.spec().search), source_(source), trainer_(trainer), group_(group), command_line_(command_line) {}

  bool run() {
    while (true) {
      const json task = ask({{"op", "next"}});
      if (task["do"] == "end") return training::stop_signal() != 0 || stopped_;
      if (task["do"] == "wait") {
        ::usleep(200000);
        distributed::report_progress();
        continue;
      }
      train(task["number"], task["values"]);
    }
  }

 private:
  // Asks on the first rank; every rank gets the answer, or the error.
  json ask(const json& request) {
    json answer;
    distributed::together(group_, [&] {
      if (source_) answer = source_->ask(request);
    });
    return json::parse(group_.all_gather_bytes(source_ ? answer.dump() : "")[0]);
  }

  void train(int64_t number, const json& values) {
    const auto begun = std::chrono::steady_clock::now();
    json told = {{"op", "tell"}, {"number", number}, {"state", "COMPLETE"}, {"value", nullptr}, {"reason", ""}};
    const auto fails = [&](const std::string& reason) {
      told["state"] = "FAIL";
      told["reason"] = reason;
    };
    try {
      const double value = train_repeats(number, values);
      if (std::isfinite(value)) told["value"] = value;
      else fails(search_.objective().metric() + " is not a finite number");
    } catch (const Pruned&) {
      told["state"] = "PRUNED";
      told["value"] = std::isfinite(last_value_) ? json(last_value_) : json();
    } catch (const Error& error) {
      switch (error.code()) {
        case ExitCode::kRequeue:
          if (training::stop_signal() != 0) {
            stopped_ = true;
            ask({{"op", "stopping"}});
            ask({{"op", "leave"}, {"number", number}});
            return;
          }
          fails("it took longer than budget.trial_minutes");
          break;
        case ExitCode::kUsage:  // another job has its directory
          ask({{"op", "leave"}, {"number", number}});
          return;
        case ExitCode::kIo:
        case ExitCode::kPeerFailed: throw;
        default:
          if (group_.size() > 1 && !dynamic_cast<const distributed::SharedError*>(&error)) throw;
          fails(error.what());
      }
    } catch (const std::exception& error) {
      if (group_.size() > 1) throw;  // the group's other ranks know nothing of it
      fails(dynamic_cast<const std::bad_alloc*>(&error) ? "out of memory" : first_line(error.what()));
    }
    told["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    const json answer = ask(told);
    if (!source_) return;
    directory_.tidy(number, answer["keep_weights"]);
    for (const auto& other : answer["drop_weights"]) directory_.tidy(other, false);
  }

  static std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

  // Mean over the repeats of the objective of the best weights.
  double train_repeats(int64_t number, const json& values) {
    const bool by_fold = search_.repeats().folds() > 0;
    const uint32_t count = by_fold ? search_.repeats().folds() : search_.repeats().seeds();
    double sum = 0;
    last_value_ = std::nan("");
    for (uint32_t repeat = 0; repeat < count; ++repeat) {
      config::LoadedExperiment loaded;
      const std::string run = directory_.trial(number) + (count > 1 ? "/repeat-" + std::to_string(repeat) : "");
      distributed::together(group_, [&] {
        auto overrides = overrides_of(values);
        overrides.push_back("name=" + search_.name() + "-" + fs::path(directory_.trial(number)).filename().string());
        const auto& base = directory_.spec().base;
        if (by_fold) overrides.push_back("data.split.fold=" + std::to_string(repeat));
        else if (repeat > 0) overrides.push_back("seed=" + std::to_string(base.seed() + repeat));
        loaded = config::load_experiment(directory_.file("base.txtpb"), overrides);
      });
      training::TrainOptions options;
      options.run_directory = run;
      options.begin = training::Begin::kAuto;
      options.time_limit = search_.budget().trial_minutes() * 60;
      options.command_line = command_line_;
      trainer_.train(loaded, options, [&](const json& row) { validated(number, repeat, sum, row); });
      const json value = json::parse(group_.all_gather_bytes(group_.rank() == 0 ? result_of(run).dump() : "")[0]);
      sum += value.is_number() ? value.get<double>() : std::nan("");
    }
    return sum / count;
  }

  static json result_of(const std::string& run) {
    std::ifstream file(run + "/result.json");
    const json result = json::parse(file, nullptr, false);
    return result.is_object() ? result["best"]["value"] : json();
  }

  // Tells Optuna, and ends the trial if it says so. `sum`: of the repeats before.
  void validated(int64_t number, uint32_t repeat, double sum, const json& row) {
    const std::string& metric = search_.objective().metric();
    const json& value = metric == "loss" ? row["loss"] : row["metrics"][metric];
    last_value_ = value.is_number() ? (sum + value.get<double>()) / (repeat + 1) : std::nan("");
    const int64_t step = static_cast<int64_t>(repeat) * search_.budget().epochs() + row["epoch"].get<int64_t>();
    const json answer = ask({{"op", "report"}, {"number", number}, {"step", step}, {"value", std::isfinite(last_value_) ? json(last_value_) : json()}});
    if (answer["prune"]) throw Pruned{};
    if (answer["stop"] && source_ && training::stop_signal() == 0) std::raise(SIGUSR2);  // as if this rank had been asked: the run saves and stops
  }

  const SearchDirectory& directory_;
  const Search& search_;
  WorkSource* source_;
  training::TrialTrainer& trainer_;
  distributed::Communicator& group_;
  const std::string& command_line_;
  double last_value_ = 0;
  bool stopped_ = false;
};

}  // namespace

bool run_trials(const SearchDirectory& directory, WorkSource* source, training::TrialTrainer& trainer, distributed::Communicator& group, const std::string& command_line) {
  return Group(directory, source, trainer, group, command_line).run();
}

}  // namespace muster::launcher
