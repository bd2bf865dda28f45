// Metrics on standard input, for the Python tests. One line per sample, `prediction,label`; prints one JSON object with
// 17 significant digits, NaN as NaN.
//   probe_plain metrics regression | classification CLASSES | multilabel CLASSES     multilabel: one line per class of
//   a sample probe_plain metrics regression-baseline | classification-baseline CLASSES | multilabel-baseline CLASSES
//   lines are `train,x` (a training label) or `eval,x`
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "core/metrics/metrics.h"
#include "core/metrics/trivial_baseline.h"

namespace {

using namespace muster::metrics;

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  char text[40];
  std::snprintf(text, sizeof(text), "%.17g", value);
  return text;
}

void print_metrics(const Metrics& metrics) {
  for (std::size_t i = 0; i < metrics.size(); ++i) {
    std::cout << (i > 0 ? "," : "") << '"' << metrics[i].first << "\":" << number(metrics[i].second);
  }
}

void print_classification(const ClassificationResult& result) {
  print_metrics(result.metrics);
  std::cout << ",\"per_class_recall\":[";
  for (std::size_t c = 0; c < result.per_class_recall.size(); ++c) {
    std::cout << (c > 0 ? "," : "") << number(result.per_class_recall[c]);
  }
  std::cout << "],\"confusion\":[";
  for (std::size_t c = 0; c < result.confusion.size(); ++c) {
    std::cout << (c > 0 ? ",[" : "[");
    for (std::size_t k = 0; k < result.confusion[c].size(); ++k)
      std::cout << (k > 0 ? "," : "") << result.confusion[c][k];
    std::cout << "]";
  }
  std::cout << "]";
}

std::vector<int64_t> as_classes(const std::vector<double>& values) { return {values.begin(), values.end()}; }

}  // namespace

int metrics_probe(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const int64_t classes = argc > 2 ? std::atoll(argv[2]) : 0;
  std::vector<double> first, labels, train;
  std::string line;
  while (std::getline(std::cin, line)) {
    const std::size_t comma = line.find(',');
    const double value = std::strtod(line.c_str() + comma + 1, nullptr);
    if (line.compare(0, comma, "train") == 0) {
      train.push_back(value);
      continue;
    }
    first.push_back(std::strtod(line.c_str(), nullptr));
    labels.push_back(value);
  }
  std::cout << "{";
  if (mode == "regression") {
    print_metrics(regression_metrics(first, labels));
  } else if (mode == "regression-baseline") {
    print_metrics(regression_baseline(train, labels));
  } else if (mode == "classification") {
    print_classification(classification_metrics(as_classes(first), as_classes(labels), classes));
  } else if (mode == "multilabel" || mode == "multilabel-baseline") {
    std::vector<std::string> names;
    for (int64_t c = 0; c < classes; ++c) names.push_back(std::to_string(c));
    print_metrics(mode == "multilabel" ? multilabel_metrics(first, labels, names)
                                       : multilabel_baseline(train, labels, names));
  } else if (mode == "classification-baseline") {
    print_classification(classification_baseline(as_classes(train), as_classes(labels), classes));
  } else {
    return 2;
  }
  std::cout << "}\n";
  return 0;
}
