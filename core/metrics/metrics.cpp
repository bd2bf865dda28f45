#include "core/metrics/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>

#include "base/error.h"

namespace muster::metrics {

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// The sum of values[0..count) in the order of numpy's float64 reduction (blocks of 128 in eight lanes, then a binary
// tree), so that means are numpy's to the last bit. Its rounding error grows with log(count), not with count.
double pairwise_sum(const double* values, std::size_t count) {
  constexpr std::size_t kLanes = 8;
  constexpr std::size_t kBlock = 128;
  if (count < kLanes) {
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += values[i];
    return sum;
  }
  if (count <= kBlock) {
    double lane[kLanes];
    for (std::size_t j = 0; j < kLanes; ++j) lane[j] = values[j];
    const std::size_t whole = count - count % kLanes;
    for (std::size_t i = kLanes; i < whole; i += kLanes) {
      for (std::size_t j = 0; j < kLanes; ++j) lane[j] += values[i + j];
    }
    double sum = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
    for (std::size_t i = whole; i < count; ++i) sum += values[i];
    return sum;
  }
  std::size_t half = count / 2;
  half -= half % kLanes;
  return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
}

double mean(const std::vector<double>& values) {
  return pairwise_sum(values.data(), values.size()) / static_cast<double>(values.size());
}

// Lin 1989, with variances and covariance of the population.
double concordance_correlation(const Scored& scored) {
  const std::vector<double>&x = scored.predictions, &y = scored.labels;
  const double mean_x = mean(x), mean_y = mean(y), count = static_cast<double>(x.size());
  std::vector<double> xy(x.size()), squares(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double dx = x[i] - mean_x, dy = y[i] - mean_y;
    xy[i] = dx * dy;
    squares[i] = dx * dx + dy * dy;
  }
  const double apart = mean_x - mean_y;
  return 2 * (pairwise_sum(xy.data(), xy.size()) / count) /
         (pairwise_sum(squares.data(), squares.size()) / count + apart * apart);
}

double mean_absolute_error(const Scored& scored) {
  std::vector<double> errors(scored.labels.size());
  for (std::size_t i = 0; i < errors.size(); ++i) errors[i] = std::abs(scored.predictions[i] - scored.labels[i]);
  return mean(errors);
}

bool is_constant(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [&](double value) { return value == values.front(); });
}

double pearson_correlation(const Scored& scored) {
  const std::vector<double>&x = scored.predictions, &y = scored.labels;
  if (is_constant(x) || is_constant(y)) return kNan;
  const double mean_x = mean(x);
  const double mean_y = mean(y);
  std::vector<double> xx(x.size()), yy(x.size()), xy(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double dx = x[i] - mean_x;
    const double dy = y[i] - mean_y;
    xx[i] = dx * dx;
    yy[i] = dy * dy;
    xy[i] = dx * dy;
  }
  const double deviation_x = std::sqrt(pairwise_sum(xx.data(), xx.size()));
  const double deviation_y = std::sqrt(pairwise_sum(yy.data(), yy.size()));
  // Rounding can carry a perfect correlation past 1; numpy clips as well. std::clamp keeps NaN.
  return std::clamp(pairwise_sum(xy.data(), xy.size()) / deviation_x / deviation_y, -1.0, 1.0);
}

// nearbyint rounds halves to even (as numpy.round does) in the default rounding mode; std::round does not.
template <int kLimit>
double rounded_accuracy(const Scored& scored) {
  const double limit = kLimit;
  int64_t hits = 0;
  for (std::size_t i = 0; i < scored.labels.size(); ++i) {
    const double predicted = std::nearbyint(std::clamp(scored.predictions[i], -limit, limit));
    hits += predicted == std::nearbyint(std::clamp(scored.labels[i], -limit, limit));
  }
  return static_cast<double>(hits) / static_cast<double>(scored.labels.size());
}

int64_t sum_of(const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (const int64_t count : counts) sum += count;
  return sum;
}

// Samples that are predicted to be of class c.
int64_t predicted_as(const Confusion& confusion, std::size_t c) {
  int64_t sum = 0;
  for (const auto& row : confusion) sum += row[c];
  return sum;
}

double accuracy(const Confusion& confusion) {
  int64_t hits = 0, samples = 0;
  for (std::size_t c = 0; c < confusion.size(); ++c) {
    hits += confusion[c][c];
    samples += sum_of(confusion[c]);
  }
  return samples == 0 ? kNan : static_cast<double>(hits) / static_cast<double>(samples);
}

// F1 of each class, 0 where it is 0/0, averaged with the class's number of labels as weight.
double weighted_f1(const Confusion& confusion) {
  double sum = 0;
  int64_t samples = 0;
  for (std::size_t c = 0; c < confusion.size(); ++c) {
    const int64_t labelled = sum_of(confusion[c]);
    const int64_t predicted = predicted_as(confusion, c);
    samples += labelled;
    if (labelled == 0) continue;  // weight 0
    sum += 2.0 * confusion[c][c] / (labelled + predicted) * labelled;
  }
  return samples == 0 ? kNan : sum / samples;
}

std::vector<double> recalls(const Confusion& confusion) {
  std::vector<double> recalls;
  for (std::size_t c = 0; c < confusion.size(); ++c) {
    const int64_t labelled = sum_of(confusion[c]);
    recalls.push_back(labelled == 0 ? kNan : static_cast<double>(confusion[c][c]) / labelled);
  }
  return recalls;
}

// The mean of those that are not NaN.
double mean_of_defined(const std::vector<double>& values) {
  double sum = 0;
  int64_t defined = 0;
  for (const double value : values) {
    if (std::isnan(value)) continue;
    sum += value;
    ++defined;
  }
  return defined == 0 ? kNan : sum / static_cast<double>(defined);
}

double mean_recall(const Confusion& confusion) { return mean_of_defined(recalls(confusion)); }

// A class without labels that is predicted has recall 0.
double macro_recall(const Confusion& confusion) {
  auto values = recalls(confusion);
  for (std::size_t c = 0; c < values.size(); ++c)
    if (std::isnan(values[c]) && predicted_as(confusion, c) > 0) values[c] = 0;
  return mean_of_defined(values);
}

// Two classes, x >= 0 against x < 0.
Confusion with_zero(const Scored& scored) {
  Confusion confusion(2, std::vector<int64_t>(2, 0));
  for (std::size_t i = 0; i < scored.labels.size(); ++i) ++confusion[scored.labels[i] >= 0][scored.predictions[i] >= 0];
  return confusion;
}

// Two classes, x > 0 against x <= 0, of the samples whose label is not 0.
Confusion without_zero(const Scored& scored) {
  Confusion confusion(2, std::vector<int64_t>(2, 0));
  for (std::size_t i = 0; i < scored.labels.size(); ++i)
    if (scored.labels[i] != 0) ++confusion[scored.labels[i] > 0][scored.predictions[i] > 0];
  return confusion;
}

// A metric of MMSA for SIMS, whose labels are in [-1, 1]: of both sides clipped to it.
template <double (*kMetric)(const Scored&)>
double of_sims(const Scored& scored) {
  Scored clipped = scored;
  for (double& label : clipped.labels)
    if (!(std::abs(label) <= 1)) return kNan;
  for (double& prediction : clipped.predictions) prediction = std::clamp(prediction, -1.0, 1.0);
  return kMetric(clipped);
}

// Classes are the intervals that `bounds` cut [-1, 1] into, each with its upper bound. In float32 as in MMSA, where a
// label of 0.1 is not above 0.1.
Confusion in_intervals(const Scored& scored, const std::vector<float>& bounds) {
  const auto interval = [&](double value) {
    std::size_t found = 0;
    while (found < bounds.size() && static_cast<float>(value) > bounds[found]) ++found;
    return found;
  };
  const std::size_t classes = bounds.size() + 1;
  Confusion confusion(classes, std::vector<int64_t>(classes, 0));
  for (std::size_t i = 0; i < scored.labels.size(); ++i) {
    const std::size_t label = interval(scored.labels[i]);
    const double prediction = scored.predictions[i];
    ++confusion[label][std::isnan(prediction) ? (label + 1) % classes : interval(prediction)];  // NaN is wrong
  }
  return confusion;
}
Confusion two_intervals(const Scored& scored) { return in_intervals(scored, {0}); }
double sims_acc_2(const Scored& scored) { return accuracy(two_intervals(scored)); }
double sims_f1(const Scored& scored) { return weighted_f1(two_intervals(scored)); }
double sims_acc_3(const Scored& scored) { return accuracy(in_intervals(scored, {-0.1f, 0.1f})); }
double sims_acc_5(const Scored& scored) { return accuracy(in_intervals(scored, {-0.7f, -0.1f, 0.1f, 0.7f})); }
// Of the samples whose label is weak, from -0.4 to 0.4.
double sims_acc_2_weak(const Scored& scored) {
  Scored weak;
  for (std::size_t i = 0; i < scored.labels.size(); ++i) {
    if (!(std::abs(static_cast<float>(scored.labels[i])) <= 0.4f)) continue;
    weak.labels.push_back(scored.labels[i]);
    weak.predictions.push_back(scored.predictions[i]);
  }
  return accuracy(two_intervals(weak));
}

// Undefined where a class is in all samples or in none.
double weighted_accuracy(const Confusion& confusion) {
  const auto found = recalls(confusion);
  return (found[0] + found[1]) / 2;
}

// The mean over classes for which it is defined.
template <double (*kMetric)(const Confusion&)>
double mean_over_classes(const Scored& scored) {
  std::vector<double> values;
  for (const Confusion& confusion : scored.per_class) values.push_back(kMetric(confusion));
  return mean_of_defined(values);
}

// F1 of the second of two classes.
double f1_of_presence(const Confusion& confusion) {
  const int64_t both = sum_of(confusion[1]) + predicted_as(confusion, 1);
  return both == 0 ? 0 : 2.0 * static_cast<double>(confusion[1][1]) / static_cast<double>(both);
}

double micro_f1(const Scored& scored) {
  Confusion all(2, std::vector<int64_t>(2, 0));
  for (const Confusion& confusion : scored.per_class)
    for (std::size_t label = 0; label < 2; ++label)
      for (std::size_t predicted = 0; predicted < 2; ++predicted) all[label][predicted] += confusion[label][predicted];
  return f1_of_presence(all);
}

double subset_accuracy(const Scored& scored) {
  return static_cast<double>(scored.exact) / static_cast<double>(scored.samples);
}

bool is_of(const Metric& metric, data::Task task) {
  return std::find(metric.tasks.begin(), metric.tasks.end(), task) != metric.tasks.end();
}

Metrics compute(data::Task task, const Scored& scored, bool empty) {
  Metrics metrics;
  for (const Metric& metric : all_metrics())
    if (metric.value != nullptr && is_of(metric, task))
      metrics.emplace_back(metric.name, empty ? kNan : metric.value(scored));
  return metrics;
}

}  // namespace

const std::vector<Metric>& all_metrics() {
  using data::Task;
  const std::vector<Task> regression{Task::kRegression}, classification{Task::kClassification},
      multilabel{Task::kMultilabel};
  constexpr bool kHigher = true, kLower = false, kDefault = true, kOfSomeData = true;
  static const std::vector<Metric> all = {
      {"Has0_acc_2", regression, kHigher, [](const Scored& scored) { return accuracy(with_zero(scored)); }},
      {"Has0_F1_score", regression, kHigher, [](const Scored& scored) { return weighted_f1(with_zero(scored)); }},
      {"Non0_acc_2", regression, kHigher, [](const Scored& scored) { return accuracy(without_zero(scored)); }},
      {"Non0_F1_score", regression, kHigher, [](const Scored& scored) { return weighted_f1(without_zero(scored)); }},
      {"Mult_acc_5", regression, kHigher, rounded_accuracy<2>},
      {"Mult_acc_7", regression, kHigher, rounded_accuracy<3>},
      {"MAE", regression, kLower, mean_absolute_error, kDefault},
      {"Corr", regression, kHigher, pearson_correlation},
      {"CCC", regression, kHigher, concordance_correlation},
      {"SIMS_acc_2", regression, kHigher, of_sims<sims_acc_2>, !kDefault, kOfSomeData},
      {"SIMS_acc_2_weak", regression, kHigher, of_sims<sims_acc_2_weak>, !kDefault, kOfSomeData},
      {"SIMS_acc_3", regression, kHigher, of_sims<sims_acc_3>, !kDefault, kOfSomeData},
      {"SIMS_acc_5", regression, kHigher, of_sims<sims_acc_5>, !kDefault, kOfSomeData},
      {"SIMS_F1_score", regression, kHigher, of_sims<sims_f1>, !kDefault, kOfSomeData},
      {"SIMS_MAE", regression, kLower, of_sims<mean_absolute_error>, !kDefault, kOfSomeData},
      {"SIMS_Corr", regression, kHigher, of_sims<pearson_correlation>, !kDefault, kOfSomeData},
      {"WA", classification, kHigher, [](const Scored& scored) { return accuracy(scored.confusion); }, kDefault},
      {"UA", classification, kHigher, [](const Scored& scored) { return mean_recall(scored.confusion); }},
      {"macro_recall", classification, kHigher, [](const Scored& scored) { return macro_recall(scored.confusion); }},
      {"weighted_F1", classification, kHigher, [](const Scored& scored) { return weighted_f1(scored.confusion); }},
      {"mean_weighted_F1", multilabel, kHigher, mean_over_classes<weighted_f1>, kDefault},
      {"mean_WA", multilabel, kHigher, mean_over_classes<weighted_accuracy>},
      {"macro_F1", multilabel, kHigher, mean_over_classes<f1_of_presence>},
      {"micro_F1", multilabel, kHigher, micro_f1},
      {"subset_accuracy", multilabel, kHigher, subset_accuracy},
      {"loss", {Task::kRegression, Task::kClassification, Task::kMultilabel}, kLower, nullptr},
  };
  return all;
}

std::vector<std::string> metric_names(data::Task task) {
  std::vector<std::string> names;
  for (const Metric& metric : all_metrics())
    if (metric.value != nullptr && is_of(metric, task)) names.push_back(metric.name);
  return names;
}

std::vector<std::string> selectable_names(data::Task task) {
  std::vector<std::string> names;
  for (const Metric& metric : all_metrics())
    if (is_of(metric, task)) names.push_back(metric.name);
  return names;
}

const std::string& default_metric(data::Task task) {
  for (const Metric& metric : all_metrics())
    if (metric.is_default && is_of(metric, task)) return metric.name;
  throw Error(ExitCode::kInternal, "a task has no default metric");
}

bool higher_is_better(const std::string& name) {
  const std::string whole = name.substr(0, name.find('['));
  for (const Metric& metric : all_metrics())
    if (metric.name == whole) return metric.higher_is_better;
  throw Error(ExitCode::kBadConfig,
              fmt::format("There is no metric \"{}\". Regression has {}; classification has {}; multi-label data have "
                          "{}; all have loss.",
                          name, fmt::join(metric_names(data::Task::kRegression), ", "),
                          fmt::join(metric_names(data::Task::kClassification), ", "),
                          fmt::join(metric_names(data::Task::kMultilabel), ", ")));
}

bool is_of_some_data(const std::string& name) {
  for (const Metric& metric : all_metrics())
    if (metric.name == name) return metric.of_some_data;
  return false;
}

double value_or_nan(const Metrics& metrics, const std::string& name) {
  for (const auto& [candidate, value] : metrics)
    if (candidate == name) return value;
  return kNan;
}

std::vector<std::string> shown_names(const std::vector<Metrics>& scores) {
  std::vector<std::string> names;
  for (const auto& metric : scores.at(0))
    if (!is_of_some_data(metric.first) || std::any_of(scores.begin(), scores.end(), [&](const Metrics& one) {
          return !std::isnan(value_or_nan(one, metric.first));
        }))
      names.push_back(metric.first);
  return names;
}

bool is_metric_of(const std::string& name, data::Task task) {
  if (name.find('[') != std::string::npos) return task == data::Task::kMultilabel;
  const auto names = metric_names(task);
  return std::find(names.begin(), names.end(), name) != names.end();
}

double metric_value(const Metrics& metrics, const std::string& name) {
  std::vector<std::string> names;
  for (const auto& [candidate, value] : metrics) {
    if (candidate == name) return value;
    names.push_back(candidate);
  }
  throw Error(ExitCode::kBadConfig,
              fmt::format("There is no metric \"{}\" here. There are: {}.", name, fmt::join(names, ", ")));
}

Metrics regression_metrics(const std::vector<double>& predictions, const std::vector<double>& labels) {
  if (predictions.size() != labels.size()) throw std::invalid_argument("predictions and labels differ in number");
  return compute(data::Task::kRegression, {predictions, labels, {}}, labels.empty());
}

Metrics multilabel_metrics(const std::vector<double>& predictions, const std::vector<double>& labels,
                           const std::vector<std::string>& class_names) {
  const std::size_t classes = class_names.size();
  if (predictions.size() != labels.size() || classes == 0 || labels.size() % classes != 0)
    throw std::invalid_argument("predictions and labels are not of these classes");
  Scored scored;
  scored.per_class.assign(classes, Confusion(2, std::vector<int64_t>(2, 0)));
  scored.samples = static_cast<int64_t>(labels.size() / classes);
  for (std::size_t begin = 0; begin < labels.size(); begin += classes) {
    bool exact = true;
    for (std::size_t c = 0; c < classes; ++c) {
      const bool label = labels[begin + c] > 0, predicted = predictions[begin + c] > 0;
      ++scored.per_class[c][label][predicted];
      exact = exact && label == predicted;
    }
    scored.exact += exact;
  }
  Metrics metrics = compute(data::Task::kMultilabel, scored, labels.empty());
  for (std::size_t c = 0; c < classes; ++c) {
    const Confusion& confusion = scored.per_class[c];
    metrics.emplace_back(fmt::format("WA[{}]", class_names[c]), weighted_accuracy(confusion));
    metrics.emplace_back(fmt::format("weighted_F1[{}]", class_names[c]), weighted_f1(confusion));
  }
  return metrics;
}

ClassificationResult classification_metrics(const std::vector<int64_t>& predictions, const std::vector<int64_t>& labels,
                                            int64_t classes) {
  if (predictions.size() != labels.size()) throw std::invalid_argument("predictions and labels differ in number");
  if (classes < 0) throw std::invalid_argument("a negative number of classes");
  Scored scored;
  scored.confusion.assign(classes, std::vector<int64_t>(classes, 0));
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0 || labels[i] >= classes || predictions[i] < 0 || predictions[i] >= classes)
      throw std::invalid_argument(
          fmt::format("class out of range: label {}, prediction {}, {} classes", labels[i], predictions[i], classes));
    ++scored.confusion[labels[i]][predictions[i]];
  }
  return {compute(data::Task::kClassification, scored, labels.empty()), scored.confusion, recalls(scored.confusion)};
}

}  // namespace muster::metrics
