#include "core/metrics/classification.h"

#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/metrics/weighted_f1.h"

namespace muster::metrics {

ClassificationResult classification_metrics(const std::vector<int64_t>& predictions, const std::vector<int64_t>& labels,
                                            int64_t classes) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  if (predictions.size() != labels.size()) throw std::invalid_argument("predictions and labels differ in number");
  if (classes < 0) throw std::invalid_argument("a negative number of classes");
  ClassificationResult result;
  result.confusion.assign(classes, std::vector<int64_t>(classes, 0));
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0 || labels[i] >= classes || predictions[i] < 0 || predictions[i] >= classes) {
      throw std::invalid_argument("class out of range: label " + std::to_string(labels[i]) + ", prediction " +
                                  std::to_string(predictions[i]) + ", " + std::to_string(classes) + " classes");
    }
    ++result.confusion[labels[i]][predictions[i]];
  }

  int64_t hits = 0;
  int64_t present = 0;
  double recalls = 0;
  for (int64_t c = 0; c < classes; ++c) {
    int64_t labelled = 0;
    for (int64_t count : result.confusion[c]) labelled += count;
    hits += result.confusion[c][c];
    if (labelled == 0) {
      result.per_class_recall.push_back(kNan);
      continue;
    }
    result.per_class_recall.push_back(static_cast<double>(result.confusion[c][c]) / labelled);
    recalls += result.per_class_recall.back();
    ++present;
  }
  result.metrics = {{"WA", labels.empty() ? kNan : static_cast<double>(hits) / labels.size()},
                    {"UA", present == 0 ? kNan : recalls / present},
                    {"weighted_F1", weighted_f1(result.confusion)}};
  return result;
}

}  // namespace muster::metrics
