#include "launcher/study/results.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/files.h"
#include "base/process.h"
#include "base/text.h"
#include "core/metrics/metrics.h"
#include "launcher/work/python.h"

namespace muster::embedded {
extern const std::string_view study_significance_py;
}

namespace muster::launcher {

using nlohmann::json;

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

double value_of(const json& metrics, const std::string& name) {
  const json value = metrics.value(name, json());
  return value.is_number() ? value.get<double>() : kNone;
}

// Which metrics, from a first result: the study's, or all, the one that chooses the weights first.
std::vector<std::string> shown_metrics(const Study& study, const run::RunResult& result) {
  std::vector<std::string> there;
  for (const auto& [name, value] : result.test.items())
    if (!value.is_null() || !metrics::is_of_some_data(name)) there.push_back(name);
  if (study.metrics_size() == 0) {
    std::string first = result.selected_by.substr(result.selected_by.find('/') + 1);
    if (std::find(there.begin(), there.end(), first) == there.end())  // the loss
      for (const auto& metric : metrics::all_metrics())
        if (metric.is_default && std::find(there.begin(), there.end(), metric.name) != there.end()) first = metric.name;
    const auto found = std::find(there.begin(), there.end(), first);
    if (found != there.end()) std::rotate(there.begin(), found, found + 1);
    return there;
  }
  for (const auto& name : study.metrics())
    if (std::find(there.begin(), there.end(), name) == there.end())
      throw Error(ExitCode::kBadConfig,
                  fmt::format("metrics: \"{}\" is no metric of this data; there are {}", name, join(there, " ")));
  return {study.metrics().begin(), study.metrics().end()};
}

int best_variant(const StudyResults& results, bool by_test) {
  const bool high = metrics::higher_is_better(results.metrics[0]);
  int best = -1;
  double best_value = 0;
  for (size_t variant = 0; variant < results.variants.size(); ++variant) {
    const auto& one = results.variants[variant];
    const double value = spread(by_test ? one.pooled[0] : one.validation).mean;
    if (!std::isfinite(value) || (best >= 0 && (high ? value <= best_value : value >= best_value))) continue;
    best = static_cast<int>(variant);
    best_value = value;
  }
  return best;
}

// What is paired, in the same order for every variant. Of seeds that are averaged those that both have.
Values units(const VariantResults& results, const VariantResults& partner, size_t metric, Study::Pairs pairs) {
  if (pairs == Study::SEEDS) return results.pooled[metric];
  Values values;
  for (size_t fold = 0; fold < results.folds[metric].size(); ++fold) {
    Values seeds = results.folds[metric][fold];
    for (size_t seed = 0; seed < seeds.size(); ++seed)
      if (!std::isfinite(partner.folds[metric][fold][seed])) seeds[seed] = kNone;
    if (pairs == Study::FOLDS)
      values.push_back(spread(seeds).mean);
    else
      values.insert(values.end(), seeds.begin(), seeds.end());
  }
  return values;
}

// Every variant against the base, for every metric: [metric][variant - 1]. By SciPy (significance.py).
std::vector<std::vector<Comparison>> compare_with_base(const StudyResults& results, const Study& study) {
  json request{{"level", study.significance_level()}, {"families", json::array()}};
  for (size_t metric = 0; metric < results.metrics.size(); ++metric) {
    json family = json::array();
    for (size_t variant = 1; variant < results.variants.size(); ++variant) {
      const auto &base = results.variants[0], &other = results.variants[variant];
      family.push_back({{"base", units(base, other, metric, study.pairs())},  // what is not finite becomes null
                        {"variant", units(other, base, metric, study.pairs())}});
    }
    request["families"].push_back(std::move(family));
  }

  ProcessOptions options;
  options.input = ProcessOptions::Input::kBytes;
  options.input_bytes = request.dump();
  options.blocked = {SIGUSR1, SIGUSR2};  // Slurm sends them to the whole process group; there is time for this to end
  const auto command = python_command({embedded::study_significance_py});
  const ProcessResult result = run_process(command, options);
  const json answer = result.code == 0 ? json::parse(result.output, nullptr, false) : json();
  if (!answer.is_array())
    throw Error(ExitCode::kBadConfig, fmt::format("the comparisons need SciPy, and {} could not make them ({}):\n{}",
                                                  command[0], kPythonHint, result.answer()));
  std::vector<std::vector<Comparison>> comparisons;
  for (const auto& family : answer) {
    comparisons.emplace_back();
    for (const auto& one : family) {
      const auto number = [&](const char* name) { return one[name].is_number() ? one[name].get<double>() : kNone; };
      comparisons.back().push_back(
          {one["n"], number("difference"), number("low"), number("high"), number("p"), number("p_holm")});
    }
  }
  return comparisons;
}

}  // namespace

Spread spread(const Values& values) {
  Spread result{0, 0, kNone};
  for (const double value : values)
    if (std::isfinite(value)) result.mean += value, ++result.n;
  if (result.n == 0) return {0, kNone, kNone};
  result.mean /= result.n;
  if (result.n < 2) return result;
  double squares = 0;
  for (const double value : values)
    if (std::isfinite(value)) squares += (value - result.mean) * (value - result.mean);
  result.std = std::sqrt(squares / (result.n - 1));
  return result;
}

Values pooled_samples(const VariantResults& results) {
  Values sums(results.samples[0].size(), 0);
  for (const auto& fold : results.samples)
    for (size_t seed = 0; seed < sums.size(); ++seed) sums[seed] += fold[seed];
  return sums;
}

StudyResults read_results(const StudyDirectory& directory) {
  directory.require_same_data();
  const StudySpec& spec = directory.spec();
  StudyResults results;
  results.folds = static_cast<int>(spec.study.folds());
  const size_t folds = std::max(1, results.folds), seeds = spec.study.seeds(), variants = spec.variants.size();

  std::vector<std::vector<std::vector<std::string>>> files(variants, std::vector<std::vector<std::string>>(seeds));
  std::vector<std::vector<std::vector<int64_t>>> rows(variants,
                                                      std::vector<std::vector<int64_t>>(seeds));  // of the files
  std::vector<std::vector<std::string>> trivial_predictions(seeds);                               // of the base's folds
  for (size_t i = 0; i < spec.cells.size(); ++i) {
    const Cell& cell = spec.cells[i];
    if (!directory.is_trained(cell)) continue;
    const run::RunResult result = directory.result(cell);
    if (results.metrics.empty()) {
      results.metrics = shown_metrics(spec.study, result);
      results.trivial.pooled.assign(results.metrics.size(), Values(seeds, kNone));
      results.trivial.folds.assign(results.metrics.size(), std::vector<Values>(folds, Values(seeds, kNone)));
      results.trivial.validation.assign(seeds, 0);
      results.trivial.samples.assign(folds, Values(seeds, kNone));
      results.variants.assign(variants, results.trivial);
    }
    if (!result.model_note.empty()) results.model_notes.insert(result.model_note);
    auto& one = results.variants[static_cast<size_t>(cell.variant)];
    const size_t seed = i / variants / folds, fold = i / variants % folds;
    const auto add = [&](VariantResults& scored, const json& scores) {
      for (size_t metric = 0; metric < results.metrics.size(); ++metric)
        scored.folds[metric][fold][seed] = value_of(scores, results.metrics[metric]);
      scored.samples[fold][seed] = static_cast<double>(result.test_samples);
      scored.dropped = std::max(scored.dropped, result.dropped_samples);
      ++scored.trained;
    };
    add(one, result.test);
    if (cell.variant == 0 && !result.test_baseline.empty()) {
      add(results.trivial, result.test_baseline);
      if (!result.trivial_prediction.empty()) trivial_predictions[seed].push_back(result.trivial_prediction);
    }
    one.validation[seed] += value_of(result.validation, results.metrics[0]) / static_cast<double>(folds);
    files[static_cast<size_t>(cell.variant)][seed].push_back(directory.run(cell) + "/predictions-test.csv");
    rows[static_cast<size_t>(cell.variant)][seed].push_back(result.test_samples);
  }
  if (results.metrics.empty()) return results;

  const auto pool = [&](VariantResults& one, size_t variant, size_t seed, const std::vector<std::string>& constants) {
    const auto pooled = folds > 1
                            ? run::scores_of_predictions(files[variant][seed], rows[variant][seed], constants).metrics
                            : metrics::Metrics();
    for (size_t metric = 0; metric < results.metrics.size(); ++metric)
      one.pooled[metric][seed] =
          folds > 1 ? metrics::metric_value(pooled, results.metrics[metric]) : one.folds[metric][0][seed];
  };
  for (size_t seed = 0; seed < seeds; ++seed) {
    for (size_t variant = 0; variant < variants; ++variant)
      if (files[variant][seed].size() == folds)
        pool(results.variants[variant], variant, seed, {});
      else
        results.variants[variant].validation[seed] = kNone;
    if (folds == 1 || trivial_predictions[seed].size() == folds)
      pool(results.trivial, 0, seed, trivial_predictions[seed]);
  }
  if (variants > 1) results.comparisons = compare_with_base(results, spec.study);
  results.best = best_variant(results, spec.study.select_on() == Study::TEST);
  return results;
}

}  // namespace muster::launcher
