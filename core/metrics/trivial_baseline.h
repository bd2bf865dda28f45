#pragma once

#include <cstdint>
#include <vector>

#include "core/metrics/metrics.h"

// Trivial floors: what a model that never looks at its input scores. It is fitted on the training labels only, as a
// model is; a result that is not clearly above it has learnt nothing.
namespace muster::metrics {

// The middle label; the mean of the two middle ones for an even number, as numpy.median. Minimises the MAE on `labels`.
// NaN for no labels.
double median(std::vector<double> labels);

// The most frequent class; the lowest of equally frequent ones. Each label in [0, classes), else std::invalid_argument;
// also for no labels.
int64_t majority_class(const std::vector<int64_t>& labels, int64_t classes);

// All regression metrics of predicting the median of `train_labels` for every sample of `labels`. Corr is NaN, because
// the prediction is constant.
Metrics regression_baseline(const std::vector<double>& train_labels, const std::vector<double>& labels);

// All classification metrics of predicting the majority class of `train_labels` for every sample of `labels`.
ClassificationResult classification_baseline(const std::vector<int64_t>& train_labels,
                                             const std::vector<int64_t>& labels, int64_t classes);

// Multi-label data: [classes] 0s and 1s, 1 for the classes that more than half of the samples have. labels: [samples x
// classes], at least one sample, else std::invalid_argument.
std::vector<double> majority_of_each_class(const std::vector<double>& labels, int64_t classes);

// All multi-label metrics of predicting that for every sample of `labels`.
Metrics multilabel_baseline(const std::vector<double>& train_labels, const std::vector<double>& labels,
                            const std::vector<std::string>& class_names);

}  // namespace muster::metrics
