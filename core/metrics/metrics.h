#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/data/dataset.h"

// Evaluation metrics: pure functions of predictions and labels. Which sample was computed where never matters, because
// callers pass all predictions in dataset order. All values are unrounded and are fractions (0.8, not 80 %).
namespace muster::metrics {

// Metric names and values, in the order in which they are reported.
using Metrics = std::vector<std::pair<std::string, double>>;

// The metrics of a task, in the order in which regression_metrics and classification_metrics report them:
// regression     Has0_acc_2 Has0_F1_score Non0_acc_2 Non0_F1_score Mult_acc_5 Mult_acc_7 MAE Corr
// classification WA UA weighted_F1
std::vector<std::string> metric_names(data::Task task);

// Whether a larger value is a better model: false for "loss" and "MAE", true for every other name of metric_names.
// Throws Error(kBadConfig), listing the known names, for any other name: a guess would select the worst model.
bool higher_is_better(const std::string& metric);

// The value of `name`. Throws Error(kBadConfig), listing the names present, when it is not there.
double metric_value(const Metrics& metrics, const std::string& name);

}  // namespace muster::metrics
