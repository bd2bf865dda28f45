#include "launcher/search/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <set>

#include "core/config/fields.h"
#include "core/metrics/metrics.h"
#include "core/models/spec.h"
#include "launcher/work/spec_file.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// What a trial cannot choose: who it is, how its process computes, or what is compared.
constexpr const char* kFixed[] = {"name",
                                  "preset",
                                  "evaluation.select_by",
                                  "training.epochs",
                                  "training.threads",
                                  "training.device",
                                  "training.share_device",
                                  "training.reproducible",
                                  "training.tf32"};

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

std::string place_of_parameter(int i) { return fmt::format("parameters[{}]", i); }

// The defaults that do not depend on the base experiment. The file in a search's directory gets them too: it may be of
// a muster that did not have the field. A default whose value is not what such a muster did must be set by
// parse_search.
void set_missing(Search& search) {
  auto& sampler = *search.mutable_sampler();
  if (!sampler.has_kind()) sampler.set_kind(Sampler::TPE);
  if (!sampler.has_startup_trials()) sampler.set_startup_trials(10);
  auto& budget = *search.mutable_budget();
  if (!budget.has_hours()) budget.set_hours(0);
  if (!budget.has_trial_minutes()) budget.set_trial_minutes(0);
  auto& pruner = *search.mutable_pruner();
  if (!pruner.has_kind()) pruner.set_kind(Pruner::NONE);
  if (!pruner.has_min_epochs()) pruner.set_min_epochs(1);
  if (!pruner.has_reduction()) pruner.set_reduction(4);
  if (!pruner.has_startup_trials()) pruner.set_startup_trials(5);
  if (!search.has_ranks_per_trial()) search.set_ranks_per_trial(1);
  auto& repeats = *search.mutable_repeats();
  if (!repeats.has_folds()) repeats.set_folds(0);
  if (!repeats.has_seeds() || repeats.seeds() == 0) repeats.set_seeds(1);
  if (!search.has_seed()) search.set_seed(1);
  if (!search.has_keep_weights()) search.set_keep_weights(1);
  if (!search.has_storage()) search.set_storage("");
}

class SpecReader {
 public:
  explicit SpecReader(const std::string& path) : path_(path), file_(path, search_) {}

  SearchSpec read() {
    file_.resolve_paths(*search_.mutable_set());
    file_.read_base(*search_.mutable_base(), {search_.set().begin(), search_.set().end()});
    for (const auto& text : search_.set()) set_.insert(path_of_override(text));
    if (file_.base_is_good() && refusal({search_.set().begin(), search_.set().end()}).empty())
      base_ = file_.varied({search_.set().begin(), search_.set().end()});
    check_parameters();
    check_numbers();
    file_.throw_if_any();
    set_defaults();
    // All of it together once more, for what the parts do not show.
    return {search_, file_.varied(fixed_overrides())};
  }

 private:
  void problem(const std::string& field, const std::string& message) { file_.problem(field, message); }
  std::string refusal(const std::vector<std::string>& overrides) const { return file_.refusal(overrides); }

  void check_parameters() {
    if (search_.parameters_size() == 0 && file_.is_whole())
      problem("parameters", "there are no parameters to search over");
    std::set<std::string> seen;
    for (int i = 0; i < search_.parameters_size(); ++i) {
      const Parameter& parameter = search_.parameters(i);
      const std::string at = place_of_parameter(i);
      if (parameter.path().empty()) {
        problem(at, "a parameter needs a path, e.g. path: \"optimizer.learning_rate\"");
        continue;
      }
      const std::string name = parameter.path();
      if (!seen.insert(name).second) problem(at + ".path", name + " is listed twice");
      if (std::find(std::begin(kFixed), std::end(kFixed), name) != std::end(kFixed) ||
          name.rfind("checkpoints.", 0) == 0 || name.rfind("deadlines.", 0) == 0)
        problem(at + ".path", name + " cannot be searched over" +
                                  (name == "training.epochs" ? ": every trial has budget.epochs" : ""));
      if (set_.count(name)) problem(at + ".path", name + " is also in `set`");
      const int kinds = parameter.has_real() + parameter.has_integer() + parameter.has_categorical();
      if (kinds != 1) {
        problem(at, name +
                        " needs exactly one of real { low: ... high: ... }, integer { low: ... high: ... } and "
                        "categorical { values: [...] }");
        continue;
      }
      if (parameter.has_real()) check_range(parameter.real(), at + ".real", name, 0.0);
      if (parameter.has_integer()) check_range(parameter.integer(), at + ".integer", name, int64_t{1});
      check_condition(i, at);
      if (name == "data.path")  // as `base` is: by the spec's folder
        for (auto& value : *search_.mutable_parameters(i)->mutable_categorical()->mutable_values())
          value = fs::absolute(fs::path(path_).parent_path() / value).lexically_normal().string();
      if (file_.base_is_good()) check_values(parameter, at);
    }
  }

  template <class Range, class Number>
  void check_range(const Range& range, const std::string& at, const std::string& name, Number least_step) {
    if (!range.has_low() || !range.has_high()) return problem(at, name + " needs low and high");
    if (!(range.low() <= range.high()) || !std::isfinite(static_cast<double>(range.low())) ||
        !std::isfinite(static_cast<double>(range.high())))
      return problem(at, name + ": low must be a number not above high");
    if (range.log() && !(range.low() > 0)) problem(at, name + ": log needs low above 0");
    if (range.log() && range.has_step()) problem(at, name + ": step and log exclude each other");
    if (range.has_step() && !(range.step() > 0 && range.step() >= least_step))
      problem(at, name + ": step must be above 0");
  }

  void check_condition(int index, const std::string& at) {
    const Parameter& parameter = search_.parameters(index);
    if (!parameter.has_when()) return;
    const auto& parameters = search_.parameters();
    const auto other = std::find_if(parameters.begin(), parameters.begin() + index,
                                    [&](const Parameter& p) { return p.path() == parameter.when().path(); });
    if (other == parameters.begin() + index)
      return problem(at + ".when", parameter.path() + ": when names \"" + parameter.when().path() +
                                       "\", which is no parameter listed before it");
    if (!other->has_categorical())
      return problem(at + ".when",
                     parameter.path() + ": when needs a categorical parameter, and " + other->path() + " is none");
    if (parameter.when().values_size() == 0) problem(at + ".when", parameter.path() + ": when needs values");
    const auto& values = other->categorical().values();
    for (const auto& value : parameter.when().values())
      if (std::find(values.begin(), values.end(), value) == values.end())
        problem(at + ".when", parameter.path() + ": " + other->path() + " never is \"" + value + "\"; its values are " +
                                  config::either({values.begin(), values.end()}));
  }

  // Both ends, or every choice, alone in the base experiment, and under the condition's first value.
  void check_values(const Parameter& parameter, const std::string& at) {
    std::vector<std::string> tried;
    if (parameter.has_real()) tried = {text_of(parameter.real().low()), text_of(parameter.real().high())};
    if (parameter.has_integer())
      tried = {fmt::to_string(parameter.integer().low()), fmt::to_string(parameter.integer().high())};
    if (parameter.has_categorical())
      tried = {parameter.categorical().values().begin(), parameter.categorical().values().end()};
    if (tried.empty()) return problem(at + ".categorical", parameter.path() + " needs values");
    if (std::set<std::string>(tried.begin(), tried.end()).size() < tried.size() && parameter.has_categorical())
      problem(at + ".categorical", parameter.path() + ": a value is listed twice");
    for (const auto& value : tried) {
      std::vector<std::string> overrides(search_.set().begin(), search_.set().end());
      if (parameter.has_when() && parameter.when().values_size() > 0)
        overrides.push_back(parameter.when().path() + "=" + parameter.when().values(0));
      overrides.push_back(parameter.path() + "=" + value);
      const std::string why = refusal(overrides);
      if (why.empty()) continue;
      problem(at + (why.find("unknown") == std::string::npos ? "" : ".path"),
              parameter.path() + "=" + value + ": " + why);
      if (why.find("unknown") != std::string::npos) return;
    }
  }

  void check_numbers() {
    if (search_.has_budget() && search_.budget().has_trials() && search_.budget().trials() == 0)
      problem("budget.trials", "budget.trials must be at least 1");
    if (!search_.budget().has_trials() && file_.is_whole())
      problem("budget", "budget.trials is missing: how many trials there are to be in all");
    if (search_.budget().has_epochs() && search_.budget().epochs() == 0)
      problem("budget.epochs", "budget.epochs must be at least 1");
    for (const auto& [field, value] : {std::pair{"budget.hours", search_.budget().hours()},
                                       {"budget.trial_minutes", search_.budget().trial_minutes()}})
      if (!(value >= 0) || std::isinf(value)) problem(field, std::string(field) + " must be 0 (no limit) or more");
    if (search_.has_ranks_per_trial() && search_.ranks_per_trial() == 0)
      problem("ranks_per_trial", "ranks_per_trial must be at least 1");
    if (search_.repeats().seeds() > 1 && search_.repeats().folds() > 0)
      problem("repeats", "repeats: seeds and folds exclude each other; a study has both");
    if (search_.has_pruner() && search_.pruner().has_reduction() && search_.pruner().reduction() < 2)
      problem("pruner.reduction", "pruner.reduction must be at least 2");
    if (file_.base_is_good() && search_.repeats().folds() > 0) {
      const auto& split = base_.data().split();
      if (split.kind() == config::Split::FIXED)
        problem("repeats.folds", "repeats.folds needs a base experiment with folds (data.split.kind)");
      if (split.kind() == config::Split::K_FOLD && search_.repeats().folds() > split.folds())
        problem("repeats.folds", fmt::format("the base experiment has {} folds (data.split.folds)", split.folds()));
      if (!split.test_group().empty())
        problem("repeats.folds",
                "the base experiment names its test group (data.split.test_group), which leaves nothing for folds to "
                "choose");
    }
    for (int i = 0; i < search_.parameters_size(); ++i)
      if (const std::string& path = search_.parameters(i).path();
          (path == "seed" && search_.repeats().seeds() > 1) ||
          (path.rfind("data.split.", 0) == 0 && search_.repeats().folds() > 0))
        problem(place_of_parameter(i) + ".path", path + " is chosen by `repeats`");
    if (search_.pruner().kind() > Pruner::NONE && file_.base_is_good() && base_.evaluation().every_steps() > 0)
      problem("pruner",
              "a pruner compares trials after equal epochs: set evaluation.every_steps=0, which the base experiment "
              "has otherwise");
    check_objective();
    check_sampler();
  }

  void check_objective() {
    metric_ = search_.objective().metric();
    if (metric_.empty() && file_.base_is_good()) metric_ = base_.evaluation().select_by();
    if (metric_.empty() && file_.base_is_good())
      if (const auto& model = models::spec_of(base_); model.tasks.size() == 1)
        metric_ = model.default_metric(model.tasks[0]);
    if (metric_.empty()) {
      if (file_.base_is_good())
        problem("objective",
                "objective.metric is missing, e.g. objective { metric: \"MAE\" }; the base experiment names none "
                "(evaluation.select_by)");
      return;
    }
    std::vector<std::string> names;
    for (const auto& metric : metrics::all_metrics()) names.push_back(metric.name);
    if (std::find(names.begin(), names.end(), metric_) == names.end()) {
      const bool test = metric_.find("test") != std::string::npos;
      problem(
          "objective.metric",
          "\"" + metric_ + "\" is no metric of the validation split; there are " + config::either(names) +
              (test ? ". A search never looks at the test split: a model chosen by it cannot be judged by it" : ""));
      metric_.clear();
    } else if (const std::string why = file_.base_is_good() ? refusal({"evaluation.select_by=" + metric_}) : "";
               !why.empty()) {
      problem("objective.metric", why);
    }
  }

  void check_sampler() {
    if (search_.sampler().kind() == Sampler::GRID)
      for (int i = 0; i < search_.parameters_size(); ++i)
        if (search_.parameters(i).has_real() && !search_.parameters(i).real().has_step())
          problem(place_of_parameter(i), search_.parameters(i).path() + ": the GRID sampler needs a step");
    if (search_.sampler().kind() == Sampler::CMAES)
      for (int i = 0; i < search_.parameters_size(); ++i)
        if (search_.parameters(i).has_categorical() || search_.parameters(i).has_when())
          problem(place_of_parameter(i), search_.parameters(i).path() +
                                             ": CMA-ES takes unconditional real and integer parameters only; use TPE");
  }

  void set_defaults() {
    if (!search_.has_name()) search_.set_name(fs::path(path_).stem().string());
    auto& objective = *search_.mutable_objective();
    objective.set_metric(metric_);
    if (!objective.has_direction())
      objective.set_direction(metrics::higher_is_better(metric_) ? Objective::MAXIMIZE : Objective::MINIMIZE);
    if (!search_.budget().has_epochs()) search_.mutable_budget()->set_epochs(base_.training().epochs());
    set_missing(search_);
  }

  std::vector<std::string> fixed_overrides() const {
    std::vector<std::string> overrides(search_.set().begin(), search_.set().end());
    overrides.push_back(fmt::format("training.epochs={}", search_.budget().epochs()));
    overrides.push_back("evaluation.select_by=" + search_.objective().metric());
    return overrides;
  }

  const std::string path_;
  Search search_;
  SpecFile file_;
  config::Experiment base_;  // with `set`
  std::string metric_;
  std::set<std::string> set_;  // paths in `set`
};

json range_of(double low, double high, bool log, json step) {
  return {{"low", low}, {"high", high}, {"log", log}, {"step", std::move(step)}};
}

}  // namespace

SearchSpec load_search(const std::string& path) { return SpecReader(path).read(); }

Search parse_search(const std::string& path) {
  Search search;
  SpecFile(path, search).throw_if_any();
  set_missing(search);
  return search;
}

std::string resolved_text(const Search& search) { return spec_text(search, "launcher/search/search.proto"); }

std::vector<std::string> overrides_of(const json& values) {
  std::vector<std::string> overrides;
  for (const auto& [path, value] : values.items()) overrides.push_back(path + "=" + text_of(value));
  return overrides;
}

json optuna_space(const Search& search) {
  const auto list = [](const auto& values) { return std::vector<std::string>(values.begin(), values.end()); };
  json space = json::array();
  for (const auto& parameter : search.parameters()) {
    json entry{{"path", parameter.path()}};
    if (parameter.has_real()) {
      const auto& real = parameter.real();
      entry["float"] = range_of(real.low(), real.high(), real.log(), real.has_step() ? json(real.step()) : json());
    } else if (parameter.has_integer()) {
      const auto& integer = parameter.integer();
      entry["int"] = {{"low", integer.low()},
                      {"high", integer.high()},
                      {"log", integer.log()},
                      {"step", integer.has_step() ? integer.step() : 1}};
    } else {
      entry["categorical"]["values"] = list(parameter.categorical().values());
    }
    if (parameter.has_when())
      entry["when"] = {{"path", parameter.when().path()}, {"in", list(parameter.when().values())}};
    space.push_back(std::move(entry));
  }
  return space;
}

namespace {

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace

json optuna_sampler(const Search& search) {
  return {{"name", lower(Sampler::Kind_Name(search.sampler().kind()))},
          {"startup_trials", search.sampler().startup_trials()}};
}

json optuna_pruner(const Search& search) {
  const auto& pruner = search.pruner();
  switch (pruner.kind()) {
    case Pruner::MEDIAN:
      return {{"name", "median"}, {"startup_trials", pruner.startup_trials()}, {"warmup_steps", pruner.min_epochs()}};
    case Pruner::ASHA:
      return {{"name", "asha"},
              {"min_resource", pruner.min_epochs()},
              {"reduction_factor", pruner.reduction()},
              {"min_early_stopping_rate", 0}};
    default:
      return {{"name", "none"}};
  }
}

}  // namespace muster::launcher
