#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/metrics/metrics.h"
#include "core/training/step.h"

namespace muster::training {

// Outputs for a list of samples, in its order.
struct Predictions {
  std::vector<int64_t> samples;
  at::Tensor outputs;  // float64 [samples, outputs]: values, or class logits

  // Classification: softmax of the outputs; the class with the largest one, the lowest on ties.
  at::Tensor probabilities() const;
  std::vector<int64_t> classes() const;
  std::vector<double> values() const;  // regression
};

struct Evaluation {
  Predictions predictions;
  double loss = 0;                                    // mean over samples of the batches' losses
  std::vector<std::pair<std::string, double>> terms;  // likewise, unweighted
  metrics::Metrics metrics;
  std::vector<std::vector<int64_t>> confusion;  // classification only
};

// Evaluates `samples` in global batches of batch_size, each sample exactly once, ranks sharing each batch. The same on
// every rank. Without labels (with_losses false) only predictions are filled. Throws SharedError(kInternal) when an
// output is not finite. Collective.
Evaluation evaluate(Step& step, const batch::BatchReader& reader, distributed::Communicator& communicator,
                    const std::vector<int64_t>& samples, int64_t batch_size, uint64_t seed, bool with_losses);

// Metrics of the trivial prediction fitted on the training labels, for `samples`.
metrics::Metrics baseline_metrics(const data::DatasetIndex& index, const std::vector<int64_t>& train,
                                  const std::vector<int64_t>& samples);

// id,label,prediction for regression; id,label,prediction,probability_<class>... for classification, labels and
// predictions as class names; no label column when the data has none. 17 digits. RFC 4180 quoting.
std::string predictions_csv(const data::DatasetIndex& index, const Predictions& predictions);

}  // namespace muster::training
