#include "core/metrics/trivial_baseline.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <stdexcept>

namespace muster::metrics {

double median(std::vector<double> labels) {
  if (labels.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(labels.begin(), labels.end());
  const std::size_t middle = labels.size() / 2;
  return labels.size() % 2 == 1 ? labels[middle] : (labels[middle - 1] + labels[middle]) / 2;
}

int64_t majority_class(const std::vector<int64_t>& labels, int64_t classes) {
  if (labels.empty() || classes < 1) throw std::invalid_argument("no labels: no majority class");
  std::vector<int64_t> counts(classes, 0);
  for (int64_t label : labels) {
    if (label < 0 || label >= classes) throw std::invalid_argument("label out of range");
    ++counts[label];
  }
  return std::max_element(counts.begin(), counts.end()) - counts.begin();
}

Metrics regression_baseline(const std::vector<double>& train_labels, const std::vector<double>& labels) {
  return regression_metrics(std::vector<double>(labels.size(), median(train_labels)), labels);
}

ClassificationResult classification_baseline(const std::vector<int64_t>& train_labels,
                                             const std::vector<int64_t>& labels, int64_t classes) {
  const std::vector<int64_t> predictions(labels.size(), majority_class(train_labels, classes));
  return classification_metrics(predictions, labels, classes);
}

std::vector<double> majority_of_each_class(const std::vector<double>& labels, int64_t classes) {
  if (classes < 1 || labels.empty() || labels.size() % static_cast<std::size_t>(classes) != 0)
    throw std::invalid_argument("no labels: no majority of each class");
  std::vector<double> counts(classes, 0);
  for (std::size_t i = 0; i < labels.size(); ++i) counts[i % counts.size()] += labels[i] > 0;
  const double samples = static_cast<double>(labels.size()) / static_cast<double>(classes);
  for (double& count : counts) count = 2 * count > samples;
  return counts;
}

Metrics multilabel_baseline(const std::vector<double>& train_labels, const std::vector<double>& labels,
                            const std::vector<std::string>& class_names) {
  const auto majority = majority_of_each_class(train_labels, static_cast<int64_t>(class_names.size()));
  std::vector<double> predictions(labels.size());
  for (std::size_t i = 0; i < labels.size(); ++i) predictions[i] = majority[i % majority.size()];
  return multilabel_metrics(predictions, labels, class_names);
}

}  // namespace muster::metrics
