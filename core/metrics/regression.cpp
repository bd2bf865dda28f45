#include "core/metrics/regression.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "core/metrics/pairwise_sum.h"
#include "core/metrics/weighted_f1.h"

namespace muster::metrics {

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double mean(const std::vector<double>& values) {
  return pairwise_sum(values.data(), values.size()) / static_cast<double>(values.size());
}

double mean_absolute_error(const std::vector<double>& predictions, const std::vector<double>& labels) {
  std::vector<double> errors(labels.size());
  for (std::size_t i = 0; i < errors.size(); ++i) errors[i] = std::abs(predictions[i] - labels[i]);
  return mean(errors);
}

bool is_constant(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [&](double value) { return value == values.front(); });
}

double pearson_correlation(const std::vector<double>& x, const std::vector<double>& y) {
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
double rounded_accuracy(const std::vector<double>& predictions, const std::vector<double>& labels, double limit) {
  int64_t hits = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const double predicted = std::nearbyint(std::clamp(predictions[i], -limit, limit));
    hits += predicted == std::nearbyint(std::clamp(labels[i], -limit, limit));
  }
  return static_cast<double>(hits) / static_cast<double>(labels.size());
}

struct BinaryScores {
  double accuracy = kNan;
  double f1 = kNan;
};

BinaryScores binary_scores(const std::vector<std::vector<int64_t>>& confusion) {
  const int64_t samples = confusion[0][0] + confusion[0][1] + confusion[1][0] + confusion[1][1];
  if (samples == 0) return {};
  return {static_cast<double>(confusion[0][0] + confusion[1][1]) / samples, weighted_f1(confusion)};
}

}  // namespace

Metrics regression_metrics(const std::vector<double>& predictions, const std::vector<double>& labels) {
  if (predictions.size() != labels.size()) throw std::invalid_argument("predictions and labels differ in number");
  Metrics metrics;
  for (const std::string& name : metric_names(data::Task::kRegression)) metrics.emplace_back(name, kNan);
  if (labels.empty()) return metrics;

  std::vector<std::vector<int64_t>> has_zero(2, std::vector<int64_t>(2, 0));
  std::vector<std::vector<int64_t>> non_zero(2, std::vector<int64_t>(2, 0));
  for (std::size_t i = 0; i < labels.size(); ++i) {
    ++has_zero[labels[i] >= 0][predictions[i] >= 0];
    if (labels[i] != 0) ++non_zero[labels[i] > 0][predictions[i] > 0];
  }
  const BinaryScores has0 = binary_scores(has_zero);
  const BinaryScores non0 = binary_scores(non_zero);
  const double values[] = {has0.accuracy,
                           has0.f1,
                           non0.accuracy,
                           non0.f1,
                           rounded_accuracy(predictions, labels, 2),
                           rounded_accuracy(predictions, labels, 3),
                           mean_absolute_error(predictions, labels),
                           pearson_correlation(predictions, labels)};
  for (std::size_t i = 0; i < metrics.size(); ++i) metrics[i].second = values[i];
  return metrics;
}

}  // namespace muster::metrics
