#include "launcher/study/significance.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "launcher/work/python.h"
#include "launcher/work/tool.h"

namespace muster::embedded {
extern const std::string_view study_significance_py;
}

namespace muster::launcher {
namespace {

using nlohmann::json;

// What is paired, in the same order for every variant. Of seeds that are averaged those that both have.
Values units(const VariantResults& results, const VariantResults& partner, size_t metric, Study::Pairs pairs) {
  if (pairs == Study::SEEDS) return results.pooled[metric];
  Values values;
  for (size_t fold = 0; fold < results.folds[metric].size(); ++fold) {
    Values seeds = results.folds[metric][fold];
    for (size_t seed = 0; seed < seeds.size(); ++seed)
      if (!std::isfinite(partner.folds[metric][fold][seed])) seeds[seed] = std::numeric_limits<double>::quiet_NaN();
    if (pairs == Study::FOLDS)
      values.push_back(spread(seeds).mean);
    else
      values.insert(values.end(), seeds.begin(), seeds.end());
  }
  return values;
}

}  // namespace

std::vector<std::vector<Comparison>> compare_with_base(const StudyResults& results, const Study& study) {
  json request{{"level", study.significance_level()}, {"families", json::array()}};
  for (size_t metric = 0; metric < results.metrics.size(); ++metric) {
    json family = json::array();
    for (size_t variant = 1; variant < results.variants.size(); ++variant) {
      const Values base = units(results.variants[0], results.variants[variant], metric, study.pairs());
      const Values other = units(results.variants[variant], results.variants[0], metric, study.pairs());
      json comparison{{"base", json::array()}, {"variant", json::array()}};
      for (size_t i = 0; i < base.size(); ++i) {
        if (!std::isfinite(base[i]) || !std::isfinite(other[i])) continue;
        comparison["base"].push_back(base[i]);
        comparison["variant"].push_back(other[i]);
      }
      family.push_back(std::move(comparison));
    }
    request["families"].push_back(std::move(family));
  }

  const ToolEnd end = run_tool({python_program(), "-c", std::string(embedded::study_significance_py)}, request.dump());
  const json answer = end.code == 0 ? json::parse(end.said, nullptr, false) : json();
  if (!answer.is_array())
    throw Error(ExitCode::kBadConfig,
                             "the comparisons need SciPy, and " + python_program() +
                                 " could not make them (./setup.sh sets it up; MUSTER_PYTHON names another one):\n" +
                                 end.said);
  std::vector<std::vector<Comparison>> comparisons;
  for (const auto& family : answer) {
    comparisons.emplace_back();
    for (const auto& one : family) {
      const auto number = [&](const char* name) {
        return one[name].is_number() ? one[name].get<double>() : std::numeric_limits<double>::quiet_NaN();
      };
      comparisons.back().push_back(
          {one["n"], number("difference"), number("low"), number("high"), number("p"), number("p_holm")});
    }
  }
  return comparisons;
}

}  // namespace muster::launcher
