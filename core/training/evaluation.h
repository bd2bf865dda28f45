#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/metrics/metrics.h"
#include "core/run/results.h"
#include "core/training/step.h"

namespace muster::training {

using run::Evaluation;
using run::Predictions;

// Evaluates `samples` in global batches of batch_size, each sample exactly once, ranks sharing each batch. The same on
// every rank. Without labels (with_losses false) only predictions are filled; with_details: the model's details too.
// Throws SharedError(kInternal) when an output is not finite. Collective.
Evaluation evaluate(Step& step, const batch::BatchReader& reader, distributed::Communicator& communicator,
                    const std::vector<int64_t>& samples, int64_t batch_size, uint64_t seed, bool with_losses,
                    bool with_details = false);

// What the samples of each group score, by the groups' names; without losses.
std::map<std::string, Evaluation> evaluations_by_group(const data::DatasetIndex& index, const Predictions& predictions);

// The trivial prediction fitted on the training labels, as predictions_csv() writes it: their median, the name of
// the most frequent class, or a 0 or 1 for each class of multi-label data, with commas between.
std::string trivial_prediction(const data::DatasetIndex& index, const std::vector<int64_t>& train);

// Metrics of the trivial prediction fitted on the training labels, for `samples`.
metrics::Metrics baseline_metrics(const data::DatasetIndex& index, const std::vector<int64_t>& train,
                                  const std::vector<int64_t>& samples);

}  // namespace muster::training
