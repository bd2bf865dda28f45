#include "core/metrics/metrics.h"

#include "base/error.h"
#include "base/text.h"

namespace muster::metrics {

namespace {

bool contains(const std::vector<std::string>& names, const std::string& name) {
  for (const std::string& candidate : names) {
    if (candidate == name) return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> metric_names(data::Task task) {
  if (task == data::Task::kRegression) {
    return {"Has0_acc_2", "Has0_F1_score", "Non0_acc_2", "Non0_F1_score", "Mult_acc_5", "Mult_acc_7", "MAE", "Corr"};
  }
  return {"WA", "UA", "weighted_F1"};
}

bool higher_is_better(const std::string& metric) {
  if (metric == "loss" || metric == "MAE") return false;
  const std::vector<std::string> regression = metric_names(data::Task::kRegression);
  const std::vector<std::string> classification = metric_names(data::Task::kClassification);
  if (contains(regression, metric) || contains(classification, metric)) return true;
  throw Error(ExitCode::kBadConfig, "There is no metric \"" + metric + "\". Regression has " + join(regression) +
                                        "; classification has " + join(classification) + "; both have loss.");
}

double metric_value(const Metrics& metrics, const std::string& name) {
  std::vector<std::string> names;
  for (const auto& [candidate, value] : metrics) {
    if (candidate == name) return value;
    names.push_back(candidate);
  }
  throw Error(ExitCode::kBadConfig, "There is no metric \"" + name + "\" here. There are: " + join(names) + ".");
}

}  // namespace muster::metrics
