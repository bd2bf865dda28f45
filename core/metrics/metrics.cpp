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
    int64_t predicted = 0;
    for (const auto& row : confusion) predicted += row[c];
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

double mean_recall(const Confusion& confusion) {
  double sum = 0;
  int64_t present = 0;
  for (const double recall : recalls(confusion)) {
    if (std::isnan(recall)) continue;
    sum += recall;
    ++present;
  }
  return present == 0 ? kNan : sum / present;
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
  const std::vector<Task> regression{Task::kRegression}, classification{Task::kClassification};
  constexpr bool kHigher = true, kLower = false, kDefault = true;
  static const std::vector<Metric> all = {
      {"Has0_acc_2", regression, kHigher, [](const Scored& scored) { return accuracy(with_zero(scored)); }},
      {"Has0_F1_score", regression, kHigher, [](const Scored& scored) { return weighted_f1(with_zero(scored)); }},
      {"Non0_acc_2", regression, kHigher, [](const Scored& scored) { return accuracy(without_zero(scored)); }},
      {"Non0_F1_score", regression, kHigher, [](const Scored& scored) { return weighted_f1(without_zero(scored)); }},
      {"Mult_acc_5", regression, kHigher, rounded_accuracy<2>},
      {"Mult_acc_7", regression, kHigher, rounded_accuracy<3>},
      {"MAE", regression, kLower, mean_absolute_error, kDefault},
      {"Corr", regression, kHigher, pearson_correlation},
      {"WA", classification, kHigher, [](const Scored& scored) { return accuracy(scored.confusion); }, kDefault},
      {"UA", classification, kHigher, [](const Scored& scored) { return mean_recall(scored.confusion); }},
      {"weighted_F1", classification, kHigher, [](const Scored& scored) { return weighted_f1(scored.confusion); }},
      {"loss", {Task::kRegression, Task::kClassification}, kLower, nullptr},
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
  for (const Metric& metric : all_metrics())
    if (metric.name == name) return metric.higher_is_better;
  throw Error(ExitCode::kBadConfig,
              fmt::format("There is no metric \"{}\". Regression has {}; classification has {}; both have loss.", name,
                          fmt::join(metric_names(data::Task::kRegression), ", "),
                          fmt::join(metric_names(data::Task::kClassification), ", ")));
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
