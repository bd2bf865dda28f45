#pragma once

#include <cstdint>
#include <vector>

#include "core/metrics/metrics.h"

namespace muster::metrics {

struct ClassificationResult {
  // WA           accuracy ("weighted accuracy" in the IEMOCAP literature)
  // UA           mean of per_class_recall over the classes that occur in the labels ("unweighted accuracy"):
  //              scikit-learn's balanced_accuracy_score; equal to recall_score(average="macro") unless a class without
  //              labels is predicted, which that one counts as recall 0
  // weighted_F1  scikit-learn's f1_score(average="weighted", zero_division=0)
  Metrics metrics;
  std::vector<std::vector<int64_t>> confusion;  // [label][prediction], classes x classes, counts
  std::vector<double> per_class_recall;         // [classes]; NaN for a class that no label has
};

// From predicted and true classes, one per sample, each in [0, classes). No samples: every metric is NaN.
// Throws std::invalid_argument when the sizes differ or a class is out of range.
ClassificationResult classification_metrics(const std::vector<int64_t>& predictions, const std::vector<int64_t>& labels,
                                            int64_t classes);

}  // namespace muster::metrics
