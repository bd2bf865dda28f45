#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/data/dataset.h"

// Evaluation metrics: pure functions of predictions and labels. Which sample was computed where never matters, because
// callers pass all predictions in dataset order. All values are unrounded and are fractions (0.8, not 80 %).
namespace muster::metrics {

// Metric names and values, in the order in which they are reported.
using Metrics = std::vector<std::pair<std::string, double>>;
using Confusion = std::vector<std::vector<int64_t>>;  // [label][prediction], counts

// What a metric is computed from.
struct Scored {
  std::vector<double> predictions, labels;  // regression: of equal length, at least one
  Confusion confusion;                      // classification
  std::vector<Confusion> per_class;         // multi-label: of each class, [2][2]: absent and present
  int64_t samples = 0, exact = 0;           // multi-label: all, and those of which every class is right
};

struct Metric {
  std::string name;
  std::vector<data::Task> tasks;
  bool higher_is_better;
  double (*value)(const Scored&);  // nullptr: the loss, which is the model's to compute
  bool is_default = false;         // selects the best weights of its tasks unless an experiment says otherwise
  bool of_some_data = false;       // NaN for most data: tables leave it out then
};

// Every metric, in the order in which they are reported. What the rest of the program knows of metrics comes from here.
// Regression: the metrics of MMSA (metricsTop.py, __eval_mosi_regression = __eval_mosei_regression), in float64:
//   Has0_acc_2, Has0_F1_score   two classes, x >= 0 against x < 0, all samples
//   Non0_acc_2, Non0_F1_score   two classes, x > 0 against x <= 0, samples whose label is not 0; NaN if there are none
//   Mult_acc_5, Mult_acc_7      accuracy after clipping both to [-2, 2], [-3, 3] and rounding halves to even
//   MAE                         bit-equal to numpy's np.mean(np.abs(predictions - labels)) on float64
//   Corr                        Pearson's r; NaN if either side is constant or there is only one sample
//   CCC                         Lin's concordance, 2 cov(p, t) / (var p + var t + (mean p - mean t)^2), with
//                               variances of the population; NaN where it is 0 / 0
// and of MMSA for SIMS (__eval_sims_regression), after clipping both to [-1, 1]; NaN for labels outside of that:
//   SIMS_acc_2, _3, _5          accuracy of the intervals that 0; -0.1, 0.1; -0.7, -0.1, 0.1, 0.7 bound, each with its
//                               upper bound, in float32
//   SIMS_acc_2_weak             SIMS_acc_2 of the samples whose label is from -0.4 to 0.4; NaN if there are none
//   SIMS_F1_score               F1 of the two
//   SIMS_MAE, SIMS_Corr
// F1 is scikit-learn's f1_score(labels, predictions, average="weighted", zero_division=0): per class, weighted by its
// number of labels. For a constant side numpy's corrcoef gives NaN or, when the mean is not exact, rounding noise: here
// it is always NaN. A NaN or infinite prediction is wrong in every accuracy as in numpy and makes MAE and Corr
// non-finite.
// Classification:
//   WA           accuracy
//   UA           scikit-learn's balanced_accuracy_score; equal to recall_score(average="macro") unless a class without
//                labels is predicted, which that one counts as recall 0
//   macro_recall that recall_score(average="macro", zero_division=0)
//   weighted_F1  scikit-learn's f1_score(average="weighted", zero_division=0)
// Multi-label, each class by itself (present or absent):
//   mean_weighted_F1  f1_score(average="weighted") of each class, averaged over classes
//   mean_WA           (true positive rate + true negative rate) / 2, the weighted accuracy of MOSEI's emotions
//                     (Zadeh et al. 2018; scikit-learn's balanced_accuracy_score), averaged over the classes that
//                     have both; NaN where none has
//   macro_F1, micro_F1, subset_accuracy   f1_score(average="macro" and "micro", zero_division=0), accuracy_score
//   WA[class], weighted_F1[class]         the first two of each class
const std::vector<Metric>& all_metrics();

// The metrics of a task that are computed from predictions: all but the loss.
std::vector<std::string> metric_names(data::Task task);

// What may select the best weights of a task: its metrics and "loss".
std::vector<std::string> selectable_names(data::Task task);

// The metric that selects the best weights of a task unless an experiment says otherwise.
const std::string& default_metric(data::Task task);

// Whether a larger value means a better model; "name[class]" as "name". Throws Error(kBadConfig), listing the known
// names, for a name that is not in all_metrics(): a guess would select the worst model.
bool higher_is_better(const std::string& metric);

// The value of `name`. Throws Error(kBadConfig), listing the names present, when it is not there.
double metric_value(const Metrics& metrics, const std::string& name);

// No samples: every metric is NaN. Throws std::invalid_argument when the sizes differ.
Metrics regression_metrics(const std::vector<double>& predictions, const std::vector<double>& labels);

struct ClassificationResult {
  Metrics metrics;
  Confusion confusion;                   // classes x classes
  std::vector<double> per_class_recall;  // [classes]; NaN for a class that no label has
};

// From predicted and true classes, one per sample, each in [0, classes). No samples: every metric is NaN.
// Throws std::invalid_argument when the sizes differ or a class is out of range.
ClassificationResult classification_metrics(const std::vector<int64_t>& predictions, const std::vector<int64_t>& labels,
                                            int64_t classes);

// Of multi-label data. predictions, labels: [samples x classes], row by row; a class is there where the number is above
// 0. No samples: every metric is NaN. Throws std::invalid_argument when the sizes do not fit.
Metrics multilabel_metrics(const std::vector<double>& predictions, const std::vector<double>& labels,
                           const std::vector<std::string>& class_names);

// Whether tables leave out this metric where it is NaN.
bool is_of_some_data(const std::string& metric);

// The names that a table of these scores shows: those of the first, without those of some data only that are NaN in
// all.
std::vector<std::string> shown_names(const std::vector<Metrics>& scores);

// The value of `name`, NaN where it is not there (earlier versions knew fewer metrics).
double value_or_nan(const Metrics& metrics, const std::string& name);

// Whether these predictions are of that task; "name[class]" is of multi-label data.
bool is_metric_of(const std::string& name, data::Task task);

}  // namespace muster::metrics
