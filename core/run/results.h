#pragma once

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/data/dataset.h"
#include "core/metrics/metrics.h"

// What a run scores: as values, as JSON and CSV in its directory, and as tables for people.
namespace muster::run {

// Outputs for a list of samples, in its order.
struct Predictions {
  std::vector<int64_t> samples;
  at::Tensor outputs;  // float64 [samples, outputs]: values, or logits of classes
  // What else the model tells of each sample, if it was asked to: names, and float64 [samples, names].
  std::vector<std::string> detail_names;
  at::Tensor details;

  // Of classes that exclude each other, the softmax of the outputs; of multi-label data the sigmoid.
  at::Tensor probabilities(data::Task task) const;
  std::vector<int64_t> classes() const;  // classification: that with the largest output, the lowest on ties
  std::vector<double> values() const;    // the outputs, row by row
};

struct Evaluation {
  Predictions predictions;
  double loss = 0;                                    // mean over samples of the batches' losses
  std::vector<std::pair<std::string, double>> terms;  // likewise, unweighted
  metrics::Metrics metrics;
  std::vector<std::vector<int64_t>> confusion;  // classification only
};

// Non-finite numbers become null.
nlohmann::json to_json(const std::vector<std::pair<std::string, double>>& values);

// {"loss", "terms", "metrics", "samples", "confusion"}.
nlohmann::json to_json(const Evaluation& evaluation);

// id,label,prediction for regression; id,label,prediction,probability_<class>... for classification, labels and
// predictions as class names; for multi-label data id,label_<class>...,prediction_<class>...,probability_<class>...,
// where a label or prediction is 0 or 1. No labels when the data has none. Then a column for each detail, by its name.
// 17 digits. RFC 4180 quoting.
std::string predictions_csv(const data::DatasetIndex& index, const Predictions& predictions);

constexpr uint64_t kLargestPredictions = uint64_t{4} << 30;  // bytes of such a file: some ten million samples

// What predictions that were written as CSV score.
struct PredictionScores {
  int64_t samples = 0;
  std::vector<std::string> class_names;  // of classification and multi-label data
  metrics::Metrics metrics;
  metrics::Confusion confusion;  // classification only
};
// Of several files of predictions_csv() together, as docs/metrics.md defines the metrics: of a cross-validation, every
// sample predicted once, by the model that had not seen it. rows: how many samples each file must have; empty: any.
// constants: one text per file that takes the place of all of its predictions, as a trivial baseline does; empty: the
// files' own. Throws Error(kBadData), naming file and sample, when a file cannot be understood, is not whole, lacks
// labels or holds a sample of another one.
PredictionScores scores_of_predictions(const std::vector<std::string>& files, const std::vector<int64_t>& rows = {},
                                       const std::vector<std::string>& constants = {});

// What a finished run has left in result.json, which core/training/ writes.
struct RunResult {
  nlohmann::json validation, test;  // metrics by name; null where not finite. Empty where the split has no such part
  std::string selected_by;          // what the best weights were chosen by: "valid/WA"
  double best_value = 0;            // its value for them; NaN where it is not finite, or nothing chose
  std::string model_note;           // to be printed wherever the result is; may be empty
  int64_t validation_samples = 0, test_samples = 0;
  int64_t dropped_samples = -1;  // of the whole dataset, because they lack a modality; -1: an earlier version's run
  // What the trivial prediction scores, as the metrics above, and that prediction as predictions_csv() would write it.
  // Empty for runs of versions that did not note it.
  nlohmann::json validation_baseline, test_baseline;
  std::string trivial_prediction;
};
// Throws Error(kBadData) when the file is missing or cannot be understood.
RunResult read_result(const std::string& run_directory);

// A table of metrics for people: one row for each metric of the first column, which others may lack.
struct ResultColumn {
  std::string title;
  metrics::Metrics metrics;
};
std::string results_table(const std::vector<ResultColumn>& columns);

// Confusion matrix with class names.
std::string confusion_table(const std::vector<std::string>& class_names,
                            const std::vector<std::vector<int64_t>>& confusion);

}  // namespace muster::run
