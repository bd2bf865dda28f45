#include "launcher/study/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "core/config/stored.h"
#include "core/models/spec.h"
#include "launcher/work/spec_file.h"

namespace muster::launcher {
namespace {

class StudyReader {
 public:
  StudyReader(const std::string& path, const std::vector<std::string>& overrides) : file_(path, study_) {
    file_.resolve_paths(*study_.mutable_set());
    for (auto& variant : *study_.mutable_variants()) file_.resolve_paths(*variant.mutable_set());
    for (const auto& text : overrides) study_.add_set(text);
  }

  StudySpec read() {
    file_.read_base(*study_.mutable_base(), study_.set());
    for (int i = 0; i < study_.set_size(); ++i) check_override(study_.set(i), fmt::format("set[{}]", i), false);
    for (int i = 0; i < study_.variants_size(); ++i) check_variant(study_.variants(i), fmt::format("variants[{}]", i));
    check_numbers();
    for (int i = 0; i < study_.metrics_size(); ++i) check_metric(study_.metrics(i), fmt::format("metrics[{}]", i));
    file_.throw_if_any();
    set_defaults();
    return with_cells();
  }

 private:
  // What the study itself decides, or what is no part of a model.
  void check_override(const std::string& text, const std::string& field, bool of_variant) {
    const std::string path = path_of_override(text);
    const std::map<std::string, std::string> own{{"name", "a study names what it trains"},
                                                 {"seed", "a study has its own `seeds`"},
                                                 {"data.split.fold", "a study has its own `folds`"},
                                                 {"data.split.test_group", "a study has its own `folds`"}};
    if (own.count(path)) file_.problem(field, path + " cannot be set here: " + own.at(path));
    if (of_variant && is_of_process(path))
      file_.problem(field, path +
                               " cannot be set here: it is the same for base and variants; the study's own `set` "
                               "takes it");
  }

  void check_variant(const Variant& variant, const std::string& at) {
    const std::string& name = variant.name();
    const bool clean = std::all_of(name.begin(), name.end(),
                                   [](unsigned char c) { return std::isalnum(c) || c == '.' || c == '_' || c == '-'; });
    if (name.empty() || !clean || name[0] == '.')
      file_.problem(at + ".name",
                    "a variant needs a name of letters, digits, \".\", \"_\" and \"-\" (its folder); `label` is what "
                    "tables call it");
    else if (!names_.insert(name).second)
      file_.problem(at + ".name",
                    name == "base" ? "\"base\" is the base experiment" : "two variants are called " + name);
    if (variant.set_size() == 0)
      file_.problem(at, "variant " + name + " needs at least one `set`: it would be the base");
    const std::vector<std::string> all(variant.set().begin(), variant.set().end());
    const bool are_good_together = file_.base_is_good() && file_.refusal(file_.after_set(all)).empty();
    std::vector<std::string> overrides;
    for (const auto& text : all) {
      const std::string field = fmt::format("{}.set[{}]", at, overrides.size());
      check_override(text, field, true);
      overrides.push_back(text);
      if (!file_.base_is_good() || are_good_together) continue;
      if (const std::string why = file_.refusal(file_.after_set(overrides)); !why.empty())
        file_.problem(field, fmt::format("{}: {}: {}", name, text, why));
    }
  }

  void check_numbers() {
    file_.require_at_least("seeds", 1);
    file_.require_at_least("ranks_per_run", 1);
    if (study_.has_significance_level() && !(study_.significance_level() > 0 && study_.significance_level() < 1))
      file_.problem("significance_level", "significance_level must be between 0 and 1, e.g. 0.05");
    if (study_.pairs() == Study::FOLDS && study_.folds() < 2)
      file_.problem("pairs", "pairs: FOLDS needs folds: 2 or more");
    file_.require_folds("folds", study_.folds());
  }

  void check_metric(const std::string& metric, const std::string& field) {
    if (!metrics_.insert(metric).second) file_.problem(field, metric + " is listed twice");
    const std::string select_by = "evaluation.select_by=" + metric.substr(0, metric.find('['));  // "WA[happy]" as "WA"
    std::string why;
    const bool set_is_good = !models::model_of(file_.base()).empty();
    if (file_.base_is_good()) why = file_.refusal(set_is_good ? file_.after_set({select_by}) : std::vector{select_by});
    if (metric == "loss") why = "the loss is no metric of the test split";
    if (!why.empty()) file_.problem(field, why);
  }

  void set_defaults() {
    if (!study_.has_name()) study_.set_name(file_.default_name());
    set_missing(study_, R"(
        base_label: "base"
        seeds: 5
        folds: 0
        select_on: VALIDATION
        significance_level: 0.05
        ranks_per_run: 1
        keep_weights: false)");
    if (!study_.has_pairs()) study_.set_pairs(study_.seeds() == 1 && study_.folds() > 1 ? Study::FOLDS : Study::SEEDS);
    for (auto& variant : *study_.mutable_variants())
      if (!variant.has_label()) variant.set_label(variant.name());
  }

  StudySpec with_cells() const {
    StudySpec spec;
    spec.study = study_;
    Variant base;
    base.set_name("base");
    base.set_label(study_.base_label());
    spec.variants.push_back(base);
    spec.variants.insert(spec.variants.end(), study_.variants().begin(), study_.variants().end());
    const int64_t first_seed = static_cast<int64_t>(file_.varied(file_.after_set({})).seed());
    const bool has_folds = study_.folds() > 0;
    for (int64_t seed = first_seed; seed < first_seed + study_.seeds(); ++seed)
      for (int fold = 0; fold < (has_folds ? static_cast<int>(study_.folds()) : 1); ++fold)
        for (size_t variant = 0; variant < spec.variants.size(); ++variant) {
          const std::string folder = fmt::format("cells/{}/seed-{}{}", spec.variants[variant].name(), seed,
                                                 has_folds ? fmt::format("-fold-{}", fold) : "");
          spec.cells.push_back({static_cast<int>(variant), seed, has_folds ? fold : -1, folder});
        }
    return spec;
  }

  Study study_;
  SpecFile file_;
  std::set<std::string> names_{"base"}, metrics_;  // that have been seen
};

}  // namespace

config::LoadedExperiment StudySpec::experiment(const Cell& cell) const {
  std::vector<std::string> overrides(study.set().begin(), study.set().end());
  const Variant& variant = variants[static_cast<size_t>(cell.variant)];
  overrides.insert(overrides.end(), variant.set().begin(), variant.set().end());
  overrides.push_back(fmt::format("seed={}", cell.seed));
  if (cell.fold >= 0) overrides.push_back(fmt::format("data.split.fold={}", cell.fold));
  overrides.push_back("name=" + study.name() + "-" + variant.name());
  return config::load_any_experiment(study.base(), overrides);
}

StudySpec load_study(const std::string& path, const std::vector<std::string>& overrides) {
  return StudyReader(path, overrides).read();
}

}  // namespace muster::launcher
