#include "launcher/search/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>

#include "base/text.h"
#include "core/config/fields.h"
#include "core/metrics/metrics.h"
#include "core/models/spec.h"
#include "launcher/work/spec_file.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

// What a trial cannot choose: its name, or what trials are compared by.
constexpr const char* kFixed[] = {"name", "preset", "evaluation.select_by", "training.epochs"};

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

std::string place_of_parameter(int i) { return fmt::format("parameters[{}]", i); }

template <class Values>
std::vector<std::string> list_of(const Values& values) {
  return {values.begin(), values.end()};
}

// As what they set: numbers by their value.
bool are_equal(const std::string& a, const std::string& b) {
  const auto x = parse_real(a), y = parse_real(b);
  return x && y ? *x == *y : a == b;
}

template <class Values>
bool has(const Values& values, const std::string& value) {
  return std::find(std::begin(values), std::end(values), value) != std::end(values);
}

// The defaults that do not depend on the base experiment. The file in a search's directory gets them too: it may be of
// a muster that did not have the field. A default whose value is not what such a muster did must be set by
// parse_search.
void set_defaults(Search& search) {
  set_missing(search, R"(
      sampler { kind: TPE startup_trials: 10 }
      budget { hours: 0 trial_minutes: 0 }
      pruner { kind: NONE min_epochs: 1 reduction: 4 startup_trials: 5 }
      ranks_per_trial: 1
      repeats { folds: 0 seeds: 1 }
      seed: 1
      keep_weights: 1
      storage: "")");
  if (search.repeats().seeds() == 0) search.mutable_repeats()->set_seeds(1);
}

class SpecReader {
 public:
  explicit SpecReader(const std::string& path) : file_(path, search_) {}

  SearchSpec read() {
    file_.resolve_paths(*search_.mutable_set());
    file_.read_base(*search_.mutable_base(), search_.set());
    if (search_.parameters_size() == 0 && file_.is_whole())
      problem("parameters", "there are no parameters to search over");
    for (int i = 0; i < search_.parameters_size(); ++i) check_parameter(i, place_of_parameter(i));
    check_numbers();
    check_repeats();
    check_objective();
    file_.throw_if_any();
    if (!search_.has_name()) search_.set_name(file_.default_name());
    auto& objective = *search_.mutable_objective();
    objective.set_metric(metric_);
    if (!objective.has_direction())
      objective.set_direction(metrics::higher_is_better(metric_) ? Objective::MAXIMIZE : Objective::MINIMIZE);
    if (!search_.budget().has_epochs()) search_.mutable_budget()->set_epochs(file_.base().training().epochs());
    set_defaults(search_);
    // All of it together once more, for what the parts do not show.
    return {search_, file_.varied(file_.after_set({fmt::format("training.epochs={}", search_.budget().epochs()),
                                                   "evaluation.select_by=" + metric_}))};
  }

 private:
  void problem(const std::string& field, const std::string& message) { file_.problem(field, message); }

  void check_parameter(int i, const std::string& at) {
    const Parameter& parameter = search_.parameters(i);
    const std::string& name = parameter.path();
    if (name.empty()) return problem(at, "a parameter needs a path, e.g. path: \"optimizer.learning_rate\"");
    if (!seen_.insert(name).second) problem(at + ".path", name + " is listed twice");
    if (has(kFixed, name) || is_of_process(name))
      problem(at + ".path",
              name + " cannot be searched over" + (name == "training.epochs" ? ": every trial has budget.epochs" : ""));
    const auto& set = search_.set();
    if (std::any_of(set.begin(), set.end(), [&](const auto& text) { return path_of_override(text) == name; }))
      problem(at + ".path", name + " is also in `set`");
    if (parameter.has_real() + parameter.has_integer() + parameter.has_categorical() != 1)
      return problem(at, name +
                             " needs exactly one of real { low: ... high: ... }, integer { low: ... high: ... } and "
                             "categorical { values: [...] }");
    if (parameter.has_real()) check_range(parameter.real(), at + ".real", name, 0.0);
    if (parameter.has_integer()) check_range(parameter.integer(), at + ".integer", name, int64_t{1});
    if (parameter.has_when()) check_condition(i, at + ".when");
    if (search_.sampler().kind() == Sampler::GRID && parameter.has_real() && !parameter.real().has_step())
      problem(at, name + ": the GRID sampler needs a step");
    if (search_.sampler().kind() == Sampler::CMAES && (parameter.has_categorical() || parameter.has_when()))
      problem(at, name + ": CMA-ES takes unconditional real and integer parameters only; use TPE");
    if ((name == "seed" && search_.repeats().seeds() > 1) ||
        (name.rfind("data.split.", 0) == 0 && search_.repeats().folds() > 0))
      problem(at + ".path", name + " is chosen by `repeats`");
    if (names_a_file(name))
      for (auto& value : *search_.mutable_parameters(i)->mutable_categorical()->mutable_values())
        value = file_.absolute(value);
    if (file_.base_is_good()) check_values(parameter, at);
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
    else if (const double steps = (static_cast<double>(range.high()) - static_cast<double>(range.low())) /
                                  static_cast<double>(range.has_step() ? range.step() : least_step);
             range.has_step() && std::isfinite(steps) &&
             std::abs(steps - std::round(steps)) > 1e-9 * std::max(1.0, steps)) {
      const auto last = range.low() + static_cast<Number>(std::floor(steps)) * range.step();
      problem(at,
              fmt::format("{}: step {} does not lead from low to high: the last value would be {}. Give that as high, "
                          "or another step",
                          name, range.step(), last));
    }
  }

  void check_condition(int index, const std::string& at) {
    const std::string& name = search_.parameters(index).path();
    const Condition& when = search_.parameters(index).when();
    const auto earlier = search_.parameters().begin(), own = earlier + index;
    const auto other = std::find_if(earlier, own, [&](const Parameter& p) { return p.path() == when.path(); });
    if (other == own)
      return problem(at,
                     fmt::format("{}: when names \"{}\", which is no parameter listed before it", name, when.path()));
    if (!other->has_categorical())
      return problem(at, fmt::format("{}: when needs a categorical parameter, and {} is none", name, other->path()));
    if (when.values_size() == 0) problem(at, name + ": when needs values");
    const auto& values = other->categorical().values();
    for (const auto& value : when.values())
      if (!has(values, value))
        problem(at, fmt::format("{}: {} never is \"{}\"; its values are {}", name, other->path(), value,
                                config::either(list_of(values))));
  }

  // Both ends, or every choice, alone in the base experiment, and under the condition's first value.
  void check_values(const Parameter& parameter, const std::string& at) {
    const std::string& name = parameter.path();
    std::vector<std::string> tried = list_of(parameter.categorical().values());
    for (auto value = tried.begin(); value != tried.end(); ++value)
      for (auto other = tried.begin(); other != value; ++other)
        if (are_equal(*value, *other))
          problem(at + ".categorical", *value == *other
                                           ? fmt::format("{}: the value {} is listed twice", name, in_quotes(*value))
                                           : fmt::format("{}: {} and {} are the same number, listed twice", name,
                                                         in_quotes(*other), in_quotes(*value)));
    if (parameter.has_real()) tried = {text_of(parameter.real().low()), text_of(parameter.real().high())};
    if (parameter.has_integer()) tried = {text_of(parameter.integer().low()), text_of(parameter.integer().high())};
    if (tried.empty()) return problem(at + ".categorical", name + " needs values");
    for (const auto& value : tried) {
      std::vector<std::string> overrides;
      if (parameter.when().values_size() > 0)
        overrides.push_back(parameter.when().path() + "=" + parameter.when().values(0));
      overrides.push_back(name + "=" + value);
      const std::string why = file_.refusal(file_.after_set(overrides));
      const bool unknown = why.find("unknown") != std::string::npos;
      if (!why.empty()) problem(at + (unknown ? ".path" : ""), fmt::format("{}={}: {}", name, value, why));
      if (unknown) return;
    }
  }

  void check_numbers() {
    const Budget& budget = search_.budget();
    if (!budget.has_trials() && file_.is_whole())
      problem("budget", "budget.trials is missing: how many trials there are to be in all");
    for (const char* field : {"budget.trials", "budget.epochs", "ranks_per_trial"}) file_.require_at_least(field, 1);
    file_.require_at_least("pruner.reduction", 2);
    for (const auto& [field, value] :
         {std::pair{"budget.hours", budget.hours()}, {"budget.trial_minutes", budget.trial_minutes()}})
      if (!(value >= 0) || std::isinf(value)) problem(field, fmt::format("{} must be 0 (no limit) or more", field));
    if (search_.pruner().kind() > Pruner::NONE && file_.base().evaluation().every_steps() > 0)
      problem("pruner",
              "a pruner compares trials after equal epochs: set evaluation.every_steps=0, which the base experiment "
              "has otherwise");
  }

  void check_repeats() {
    if (search_.repeats().seeds() > 1 && search_.repeats().folds() > 0)
      problem("repeats", "repeats: seeds and folds exclude each other; a study has both");
    file_.require_folds("repeats.folds", search_.repeats().folds());
  }

  void check_objective() {
    metric_ = search_.objective().metric();
    if (metric_.empty() && models::model_of(file_.base()).empty()) return;  // what is wrong is known already
    if (metric_.empty()) metric_ = file_.base().evaluation().select_by();
    // A model that learns no numbers is searched for classes; for multi-label data the metric must be named.
    if (metric_.empty())
      if (const auto& model = models::spec_of(file_.base()); !model.learns(data::Task::kRegression))
        metric_ = model.default_metric(data::Task::kClassification);
    if (metric_.empty())
      return problem("objective",
                     "objective.metric is missing, e.g. objective { metric: \"MAE\" }; the base experiment names none "
                     "(evaluation.select_by)");
    std::vector<std::string> names;
    for (const auto& metric : metrics::all_metrics()) names.push_back(metric.name);
    std::string why = file_.base_is_good() ? file_.refusal({"evaluation.select_by=" + metric_}) : "";
    if (!has(names, metric_)) {
      why = fmt::format("\"{}\" is no metric of the validation split; there are {}", metric_, config::either(names));
      if (metric_.find("test") != std::string::npos)
        why += ". A search never looks at the test split: a model chosen by it cannot be judged by it";
    }
    if (!why.empty()) problem("objective.metric", why);
  }

  Search search_;
  SpecFile file_;
  std::string metric_;
  std::set<std::string> seen_;  // parameters
};

}  // namespace

SearchSpec load_search(const std::string& path) { return SpecReader(path).read(); }

Search parse_search(const std::string& path) {
  Search search;
  SpecFile(path, search).throw_if_any();
  set_defaults(search);
  return search;
}

std::string resolved_text(const Search& search) { return spec_text(search, "launcher/search/search.proto"); }

std::vector<std::string> overrides_of(const json& values) {
  std::vector<std::string> overrides;
  for (const auto& [path, value] : values.items()) overrides.push_back(path + "=" + text_of(value));
  return overrides;
}

json optuna_space(const Search& search) {
  const auto range_of = [](const auto& range, json step) -> json {
    return {{"low", range.low()}, {"high", range.high()}, {"log", range.log()}, {"step", std::move(step)}};
  };
  json space = json::array();
  for (const auto& parameter : search.parameters()) {
    json entry{{"path", parameter.path()}};
    const auto& real = parameter.real();
    const auto& integer = parameter.integer();
    if (parameter.has_real())
      entry["float"] = range_of(real, real.has_step() ? json(real.step()) : json());
    else if (parameter.has_integer())
      entry["int"] = range_of(integer, integer.has_step() ? integer.step() : 1);
    else
      entry["categorical"]["values"] = list_of(parameter.categorical().values());
    if (parameter.has_when())
      entry["when"] = {{"path", parameter.when().path()}, {"in", list_of(parameter.when().values())}};
    space.push_back(std::move(entry));
  }
  return space;
}

json optuna_sampler(const Search& search) {
  std::string name = Sampler::Kind_Name(search.sampler().kind());
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return {{"name", name}, {"startup_trials", search.sampler().startup_trials()}};
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
