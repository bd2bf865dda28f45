#include "launcher/search/spec.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <set>

#include "core/config/check.h"
#include "core/config/fields.h"
#include "core/config/outline.h"
#include "core/config/problems.h"
#include "core/config/reader.h"
#include "core/config/suggest.h"
#include "core/config/text_file.h"
#include "core/metrics/metrics.h"
#include "distributed/error.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;
using distributed::Error;
using nlohmann::json;

// What a trial cannot choose: who it is, how its process computes, or what is compared.
constexpr const char* kFixed[] = {"name", "preset", "evaluation.select_by", "training.epochs", "training.threads", "training.device", "training.share_device"};

std::string text_of(const json& value) {
  if (value.is_string()) return value;
  return value.dump();
}

class SpecReader {
 public:
  explicit SpecReader(const std::string& path) : path_(path), problems_(path) {}

  SearchSpec read() {
    const std::string text = config::read_text_file(path_);
    config::require_proto_message(text, path_, "muster.launcher.Search");
    const auto statements = config::outline(text, [&](int line, const std::string& message) { problems_.at_line(line, message); });
    config::StatementReader(parsed_, problems_, [&](int line) { return path_ + ":" + std::to_string(line); }).read(statements, search_, "");
    check_base();
    check_parameters();
    check_numbers();
    problems_.throw_if_any();
    set_defaults();
    // All of it together once more, for what the parts do not show.
    base_ = config::load_experiment(base_path_, fixed_overrides()).experiment;
    return {search_, base_};
  }

 private:
  std::string place(const std::string& field) const {
    for (std::string path = field; !path.empty(); path = path.substr(0, path.rfind('.') == std::string::npos ? 0 : path.rfind('.')))
      if (const auto found = parsed_.origins.find(path); found != parsed_.origins.end()) return found->second;
    return path_ + ":1";
  }
  void problem(const std::string& field, const std::string& message) { problems_.at(place(field), message); }

  // The experiment with these overrides, or what is wrong with it in one line.
  std::string refusal(const std::vector<std::string>& overrides) const {
    try {
      config::load_experiment(base_path_, overrides);
      return "";
    } catch (const Error& error) {
      // "PATH: N problems:\n  --set a=b: what is wrong\n ...": the first is enough, the rest follows from it.
      const std::string text = error.what();
      const auto line = text.find('\n');
      std::string first = line == std::string::npos ? text : text.substr(line + 1, text.find('\n', line + 1) - line - 1);
      first.erase(0, first.find_first_not_of(' '));
      if (const std::string own = "--set " + overrides.back() + ": "; first.rfind(own, 0) == 0) first.erase(0, own.size());
      return first;
    }
  }

  void check_base() {
    if (search_.base().empty()) {
      problem("base", "base is missing: the experiment file that every trial varies, e.g. base: \"../quickstart.txtpb\"");
      return;
    }
    base_path_ = fs::absolute(fs::path(path_).parent_path() / search_.base()).lexically_normal().string();
    search_.set_base(base_path_);
    std::vector<std::string> overrides;
    try {
      base_ = config::load_experiment(base_path_, {}).experiment;
      base_is_good_ = true;
    } catch (const Error& error) {
      problem("base", error.what());
      return;
    }
    for (int i = 0; i < search_.set_size(); ++i) {
      const std::string why = refusal({search_.set(i)});
      const std::string path = search_.set(i).substr(0, search_.set(i).find('='));
      if (!why.empty()) problem("set[" + std::to_string(i) + "]", why);
      set_.insert(path);
    }
  }

  void check_parameters() {
    if (search_.parameters_size() == 0 && parsed_.complete) problem("parameters", "there are no parameters to search over");
    std::set<std::string> seen;
    for (int i = 0; i < search_.parameters_size(); ++i) {
      const Parameter& parameter = search_.parameters(i);
      const std::string at = "parameters[" + std::to_string(i) + "]";
      if (parameter.path().empty()) {
        problem(at, "a parameter needs a path, e.g. path: \"optimizer.learning_rate\"");
        continue;
      }
      const std::string name = parameter.path();
      if (!seen.insert(name).second) problem(at + ".path", name + " is listed twice");
      if (std::find(std::begin(kFixed), std::end(kFixed), name) != std::end(kFixed) || name.rfind("checkpoints.", 0) == 0 || name.rfind("deadlines.", 0) == 0)
        problem(at + ".path", name + " cannot be searched over" + (name == "training.epochs" ? ": every trial has budget.epochs" : ""));
      if (set_.count(name)) problem(at + ".path", name + " is also in `set`");
      const int kinds = parameter.has_real() + parameter.has_integer() + parameter.has_categorical();
      if (kinds != 1) {
        problem(at, name + " needs exactly one of real { low: ... high: ... }, integer { low: ... high: ... } and categorical { values: [...] }");
        continue;
      }
      if (parameter.has_real()) check_range(parameter.real(), at + ".real", name, 0.0);
      if (parameter.has_integer()) check_range(parameter.integer(), at + ".integer", name, int64_t{1});
      check_condition(i, at);
      if (base_is_good_) check_values(parameter, at);
    }
  }

  template <class Range, class Number>
  void check_range(const Range& range, const std::string& at, const std::string& name, Number least_step) {
    if (!range.has_low() || !range.has_high()) return problem(at, name + " needs low and high");
    if (!(range.low() <= range.high()) || !std::isfinite(static_cast<double>(range.low())) || !std::isfinite(static_cast<double>(range.high())))
      return problem(at, name + ": low must be a number not above high");
    if (range.log() && !(range.low() > 0)) problem(at, name + ": log needs low above 0");
    if (range.log() && range.has_step()) problem(at, name + ": step and log exclude each other");
    if (range.has_step() && !(range.step() > 0 && range.step() >= least_step)) problem(at, name + ": step must be above 0");
  }

  void check_condition(int index, const std::string& at) {
    const Parameter& parameter = search_.parameters(index);
    if (!parameter.has_when()) return;
    const auto& parameters = search_.parameters();
    const auto other = std::find_if(parameters.begin(), parameters.begin() + index, [&](const Parameter& p) { return p.path() == parameter.when().path(); });
    if (other == parameters.begin() + index)
      return problem(at + ".when", parameter.path() + ": when names \"" + parameter.when().path() + "\", which is no parameter listed before it");
    if (!other->has_categorical()) return problem(at + ".when", parameter.path() + ": when needs a categorical parameter, and " + other->path() + " is none");
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
    if (parameter.has_integer()) tried = {std::to_string(parameter.integer().low()), std::to_string(parameter.integer().high())};
    if (parameter.has_categorical()) tried = {parameter.categorical().values().begin(), parameter.categorical().values().end()};
    if (tried.empty()) return problem(at + ".categorical", parameter.path() + " needs values");
    if (std::set<std::string>(tried.begin(), tried.end()).size() < tried.size() && parameter.has_categorical())
      problem(at + ".categorical", parameter.path() + ": a value is listed twice");
    for (const auto& value : tried) {
      std::vector<std::string> overrides(search_.set().begin(), search_.set().end());
      if (parameter.has_when() && parameter.when().values_size() > 0) overrides.push_back(parameter.when().path() + "=" + parameter.when().values(0));
      overrides.push_back(parameter.path() + "=" + value);
      const std::string why = refusal(overrides);
      if (why.empty()) continue;
      problem(at + (why.find("unknown") == std::string::npos ? "" : ".path"), parameter.path() + "=" + value + ": " + why);
      if (why.find("unknown") != std::string::npos) return;
    }
  }

  void check_numbers() {
    if (search_.has_budget() && search_.budget().has_trials() && search_.budget().trials() == 0) problem("budget.trials", "budget.trials must be at least 1");
    if (!search_.budget().has_trials() && parsed_.complete) problem("budget", "budget.trials is missing: how many trials there are to be in all");
    if (search_.budget().has_epochs() && search_.budget().epochs() == 0) problem("budget.epochs", "budget.epochs must be at least 1");
    for (const auto& [field, value] : {std::pair{"budget.hours", search_.budget().hours()}, {"budget.trial_minutes", search_.budget().trial_minutes()}})
      if (!(value >= 0) || std::isinf(value)) problem(field, std::string(field) + " must be 0 (no limit) or more");
    if (search_.has_ranks_per_trial() && search_.ranks_per_trial() == 0) problem("ranks_per_trial", "ranks_per_trial must be at least 1");
    if (search_.repeats().seeds() > 1 && search_.repeats().folds() > 0) problem("repeats", "repeats: seeds and folds exclude each other; a study has both");
    if (search_.has_pruner() && search_.pruner().has_reduction() && search_.pruner().reduction() < 2) problem("pruner.reduction", "pruner.reduction must be at least 2");
    if (base_is_good_ && search_.repeats().folds() > 0) {
      const auto& split = base_.data().split();
      if (split.kind() == config::Split::FIXED) problem("repeats.folds", "repeats.folds needs a base experiment with folds (data.split.kind)");
      if (split.kind() == config::Split::K_FOLD && search_.repeats().folds() > split.folds())
        problem("repeats.folds", "the base experiment has " + std::to_string(split.folds()) + " folds (data.split.folds)");
    }
    check_objective();
    check_sampler();
  }

  void check_objective() {
    metric_ = search_.objective().metric();
    if (metric_.empty() && base_is_good_) metric_ = base_.evaluation().select_by();
    if (metric_.empty() && base_is_good_ && base_.has_foal_net()) metric_ = "WA";
    if (metric_.empty()) {
      if (base_is_good_) problem("objective", "objective.metric is missing, e.g. objective { metric: \"MAE\" }; the base experiment names none (evaluation.select_by)");
      return;
    }
    auto names = config::regression_metrics();
    names.insert(names.end(), config::classification_metrics().begin(), config::classification_metrics().end());
    names.push_back("loss");
    if (std::find(names.begin(), names.end(), metric_) == names.end()) {
      const bool test = metric_.find("test") != std::string::npos;
      problem("objective.metric", "\"" + metric_ + "\" is no metric of the validation split; there are " + config::either(names) +
                                      (test ? ". A search never looks at the test split: a model chosen by it cannot be judged by it" : ""));
      metric_.clear();
    } else if (const std::string why = base_is_good_ ? refusal({"evaluation.select_by=" + metric_}) : ""; !why.empty()) {
      problem("objective.metric", why);
    }
  }

  void check_sampler() {
    if (search_.sampler().kind() == Sampler::GRID)
      for (int i = 0; i < search_.parameters_size(); ++i)
        if (search_.parameters(i).has_real() && !search_.parameters(i).real().has_step())
          problem("parameters[" + std::to_string(i) + "]", search_.parameters(i).path() + ": the GRID sampler needs a step");
    if (search_.sampler().kind() == Sampler::CMAES)
      for (int i = 0; i < search_.parameters_size(); ++i)
        if (search_.parameters(i).has_categorical() || search_.parameters(i).has_when())
          problem("parameters[" + std::to_string(i) + "]", search_.parameters(i).path() + ": CMA-ES takes unconditional real and integer parameters only; use TPE");
  }

  void set_defaults() {
    if (!search_.has_name()) search_.set_name(fs::path(path_).stem().string());
    auto& objective = *search_.mutable_objective();
    objective.set_metric(metric_);
    if (!objective.has_direction()) objective.set_direction(metrics::higher_is_better(metric_) ? Objective::MAXIMIZE : Objective::MINIMIZE);
    auto& sampler = *search_.mutable_sampler();
    if (!sampler.has_kind()) sampler.set_kind(Sampler::TPE);
    if (!sampler.has_startup_trials()) sampler.set_startup_trials(10);
    auto& budget = *search_.mutable_budget();
    if (!budget.has_epochs()) budget.set_epochs(base_.training().epochs());
    if (!budget.has_hours()) budget.set_hours(0);
    if (!budget.has_trial_minutes()) budget.set_trial_minutes(0);
    auto& pruner = *search_.mutable_pruner();
    if (!pruner.has_kind()) pruner.set_kind(Pruner::NONE);
    if (!pruner.has_min_epochs()) pruner.set_min_epochs(1);
    if (!pruner.has_reduction()) pruner.set_reduction(4);
    if (!pruner.has_startup_trials()) pruner.set_startup_trials(5);
    if (!search_.has_ranks_per_trial()) search_.set_ranks_per_trial(1);
    auto& repeats = *search_.mutable_repeats();
    if (!repeats.has_folds()) repeats.set_folds(0);
    if (!repeats.has_seeds() || repeats.seeds() == 0) repeats.set_seeds(1);
    if (!search_.has_seed()) search_.set_seed(1);
    if (!search_.has_keep_weights()) search_.set_keep_weights(1);
    if (!search_.has_storage()) search_.set_storage("");
  }

  std::vector<std::string> fixed_overrides() const {
    std::vector<std::string> overrides(search_.set().begin(), search_.set().end());
    overrides.push_back("training.epochs=" + std::to_string(search_.budget().epochs()));
    overrides.push_back("evaluation.select_by=" + search_.objective().metric());
    return overrides;
  }

  const std::string path_;
  config::Problems problems_;
  config::Parsed parsed_;  // where each field of the spec stands
  Search search_;
  std::string base_path_, metric_;
  config::Experiment base_;
  bool base_is_good_ = false;
  std::set<std::string> set_;  // paths in `set`
};

json range_of(double low, double high, bool log, json step) { return {{"low", low}, {"high", high}, {"log", log}, {"step", std::move(step)}}; }

}  // namespace

SearchSpec load_search(const std::string& path) { return SpecReader(path).read(); }

Search parse_search(const std::string& text, const std::string& path) {
  config::require_proto_message(text, path, "muster.launcher.Search");
  config::Problems problems(path);
  config::Parsed parsed;  // for its bookkeeping
  Search search;
  const auto statements = config::outline(text, [&](int line, const std::string& message) { problems.at_line(line, message); });
  config::StatementReader(parsed, problems, [&](int line) { return path + ":" + std::to_string(line); }).read(statements, search, "");
  problems.throw_if_any();
  return search;
}

std::string resolved_text(const Search& search) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string body;
  printer.PrintToString(search, &body);
  return "# proto-file: launcher/search/search.proto\n# proto-message: muster.launcher.Search\n" + body;
}

std::vector<std::string> overrides_of(const json& values) {
  std::vector<std::string> overrides;
  for (const auto& [path, value] : values.items()) overrides.push_back(path + "=" + text_of(value));
  return overrides;
}

json brain_space(const Search& search) {
  json space = json::array();
  for (const auto& parameter : search.parameters()) {
    json entry{{"path", parameter.path()}};
    if (parameter.has_real()) {
      const auto& real = parameter.real();
      entry["float"] = range_of(real.low(), real.high(), real.log(), real.has_step() ? json(real.step()) : json());
    } else if (parameter.has_integer()) {
      const auto& integer = parameter.integer();
      entry["int"] = {{"low", integer.low()}, {"high", integer.high()}, {"log", integer.log()}, {"step", integer.has_step() ? integer.step() : 1}};
    } else {
      entry["categorical"]["values"] = std::vector<std::string>(parameter.categorical().values().begin(), parameter.categorical().values().end());
    }
    if (parameter.has_when())
      entry["when"] = {{"path", parameter.when().path()}, {"in", std::vector<std::string>(parameter.when().values().begin(), parameter.when().values().end())}};
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

json brain_sampler(const Search& search) {
  return {{"name", lower(Sampler::Kind_Name(search.sampler().kind()))}, {"startup_trials", search.sampler().startup_trials()}};
}

json brain_pruner(const Search& search) {
  const auto& pruner = search.pruner();
  switch (pruner.kind()) {
    case Pruner::MEDIAN: return {{"name", "median"}, {"startup_trials", pruner.startup_trials()}, {"warmup_steps", pruner.min_epochs()}};
    case Pruner::ASHA: return {{"name", "asha"}, {"min_resource", pruner.min_epochs()}, {"reduction_factor", pruner.reduction()}, {"min_early_stopping_rate", 0}};
    default: return {{"name", "none"}};
  }
}

}  // namespace muster::launcher
