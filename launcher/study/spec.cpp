#include "launcher/study/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "launcher/work/spec_file.h"

namespace muster::launcher {
namespace {

// What the study itself decides, or what is no part of a model.
constexpr const char* kOwn[] = {"name", "seed", "data.split.fold", "data.split.test_group"};
// How a process computes: the same for all that it trains.
constexpr const char* kOfProcess[] = {"training.threads", "training.device", "training.share_device",
                                      "training.reproducible", "training.tf32"};

template <size_t count>
bool is_one_of(const char* const (&paths)[count], const std::string& path) {
  return std::find(std::begin(paths), std::end(paths), path) != std::end(paths);
}

class StudyReader {
 public:
  StudyReader(const std::string& path, const std::vector<std::string>& overrides)
      : path_(path), overrides_(overrides), file_(path, study_) {}

  StudySpec read() {
    file_.resolve_paths(*study_.mutable_set());
    for (auto& variant : *study_.mutable_variants()) file_.resolve_paths(*variant.mutable_set());
    for (const auto& text : overrides_) study_.add_set(text);
    const std::vector<std::string> set(study_.set().begin(), study_.set().end());
    file_.read_base(*study_.mutable_base(), set);
    for (int i = 0; i < study_.set_size(); ++i) check_override(study_.set(i), fmt::format("set[{}]", i), false);
    check_variants(set);
    check_numbers(set);
    file_.throw_if_any();
    set_defaults();
    return with_cells();
  }

 private:
  void check_override(const std::string& text, const std::string& field, bool of_variant) {
    const std::string path = path_of_override(text);
    const std::string no = path + " cannot be set here: ";
    if (is_one_of(kOwn, path))
      file_.problem(field, no + (path == "seed"   ? "a study has its own `seeds`"
                                 : path == "name" ? "a study names what it trains"
                                                  : "a study has its own `folds`"));
    if (of_variant &&
        (is_one_of(kOfProcess, path) || path.rfind("checkpoints.", 0) == 0 || path.rfind("deadlines.", 0) == 0))
      file_.problem(field, no + "it is the same for base and variants; the study's own `set` takes it");
  }

  void check_variants(const std::vector<std::string>& set) {
    if (study_.variants_size() == 0 && file_.is_whole())
      file_.problem("variants",
                    "there are no variants to compare with the base, e.g. variants { name: \"no_avel\" set: "
                    "\"foal_net.avel_weight=0\" }");
    std::set<std::string> names{"base"};
    for (int i = 0; i < study_.variants_size(); ++i) {
      const Variant& variant = study_.variants(i);
      const std::string at = fmt::format("variants[{}]", i);
      const bool clean = std::all_of(variant.name().begin(), variant.name().end(), [](unsigned char c) {
        return std::isalnum(c) || c == '.' || c == '_' || c == '-';
      });
      if (variant.name().empty() || !clean || variant.name()[0] == '.')
        file_.problem(at + ".name",
                      "a variant needs a name of letters, digits, \".\", \"_\" and \"-\" (its folder); `label` is what "
                      "tables call it");
      else if (!names.insert(variant.name()).second)
        file_.problem(at + ".name", variant.name() == "base" ? "\"base\" is the base experiment"
                                                             : "two variants are called " + variant.name());
      if (variant.set_size() == 0)
        file_.problem(at, "variant " + variant.name() + " needs at least one `set`: it would be the base");
      for (int j = 0; j < variant.set_size(); ++j) {
        const std::string field = fmt::format("{}.set[{}]", at, j);
        check_override(variant.set(j), field, true);
        if (!file_.base_is_good()) continue;
        auto overrides = set;
        overrides.insert(overrides.end(), variant.set().begin(), variant.set().begin() + j + 1);
        if (const std::string why = file_.refusal(overrides); !why.empty())
          file_.problem(field, variant.name() + ": " + variant.set(j) + ": " + why);
      }
    }
  }

  void check_numbers(const std::vector<std::string>& set) {
    if (study_.has_seeds() && study_.seeds() == 0) file_.problem("seeds", "seeds must be at least 1");
    if (study_.has_ranks_per_run() && study_.ranks_per_run() == 0)
      file_.problem("ranks_per_run", "ranks_per_run must be at least 1");
    if (study_.has_significance_level() && !(study_.significance_level() > 0 && study_.significance_level() < 1))
      file_.problem("significance_level", "significance_level must be between 0 and 1, e.g. 0.05");
    std::set<std::string> seen;
    for (int i = 0; i < study_.metrics_size(); ++i) {
      const std::string field = fmt::format("metrics[{}]", i);
      if (!seen.insert(study_.metrics(i)).second) file_.problem(field, study_.metrics(i) + " is listed twice");
      if (study_.metrics(i) == "loss")
        file_.problem(field, "the loss is no metric of the test split");
      else if (const std::string why =
                   file_.base_is_good() ? file_.refusal({"evaluation.select_by=" + study_.metrics(i)}) : "";
               !why.empty())
        file_.problem(field, why);
    }
    if (study_.pairs() == Study::FOLDS && study_.folds() < 2)
      file_.problem("pairs", "pairs: FOLDS needs folds: 2 or more");
    if (!file_.base_is_good() || study_.folds() == 0 || !file_.refusal(set).empty()) return;
    const auto split = file_.varied(set).data().split();
    if (split.kind() == config::Split::FIXED)
      file_.problem("folds", "folds needs a base experiment with folds: data.split.kind LEAVE_ONE_GROUP_OUT or K_FOLD");
    if (split.kind() == config::Split::K_FOLD && study_.folds() > split.folds())
      file_.problem("folds", fmt::format("the base experiment has {} folds (data.split.folds)", split.folds()));
    if (!split.test_group().empty())
      file_.problem(
          "folds",
          "the base experiment names its test group (data.split.test_group), which leaves nothing for folds to choose");
  }

  void set_defaults() {
    if (!study_.has_name()) study_.set_name(std::filesystem::path(path_).stem().string());
    if (!study_.has_base_label()) study_.set_base_label("base");
    if (!study_.has_seeds()) study_.set_seeds(5);
    if (!study_.has_folds()) study_.set_folds(0);
    if (!study_.has_select_on()) study_.set_select_on(Study::VALIDATION);
    if (!study_.has_pairs()) study_.set_pairs(study_.seeds() == 1 && study_.folds() > 1 ? Study::FOLDS : Study::SEEDS);
    if (!study_.has_significance_level()) study_.set_significance_level(0.05);
    if (!study_.has_ranks_per_run()) study_.set_ranks_per_run(1);
    if (!study_.has_keep_weights()) study_.set_keep_weights(false);
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
    const int64_t first_seed = static_cast<int64_t>(file_.varied({study_.set().begin(), study_.set().end()}).seed());
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

  const std::string path_;
  const std::vector<std::string>& overrides_;
  Study study_;
  SpecFile file_;
};

}  // namespace

config::LoadedExperiment StudySpec::experiment(const Cell& cell) const {
  std::vector<std::string> overrides(study.set().begin(), study.set().end());
  const Variant& variant = variants[static_cast<size_t>(cell.variant)];
  overrides.insert(overrides.end(), variant.set().begin(), variant.set().end());
  overrides.push_back(fmt::format("seed={}", cell.seed));
  if (cell.fold >= 0) overrides.push_back(fmt::format("data.split.fold={}", cell.fold));
  overrides.push_back("name=" + study.name() + "-" + variant.name());
  return config::load_experiment(study.base(), overrides);
}

StudySpec load_study(const std::string& path, const std::vector<std::string>& overrides) {
  return StudyReader(path, overrides).read();
}

}  // namespace muster::launcher
