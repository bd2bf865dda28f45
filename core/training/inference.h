#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/config/experiment.pb.h"
#include "core/training/compute.h"
#include "core/training/data_source.h"
#include "core/training/evaluation.h"
#include "distributed/communicator.h"

namespace muster::training {

struct InferenceOptions {
  std::string weights;        // safetensors file
  std::string run_directory;  // that they are of, which has kept what its encoders are; empty: none
  std::string data;           // dataset in place of the experiment's; empty: the experiment's
  std::string split;          // "train", "valid", "test" by the experiment's split, or "all"
  std::string expected_hash;  // SHA-256 that the data must have; empty: any
  std::string training_hash;  // SHA-256 of the data that the weights were trained on; empty: not known
  bool needs_labels = true;   // true: metrics and losses; false: predictions, whether there are labels or not
  bool with_details = false;  // the predictions' details too
  std::string request;        // what else the command asks for, as text: must be the same on every rank
};

// Saved weights, ready to be applied to the data that they were opened with, and to that data changed. The
// standardization is the one that is stored with them. Ranks share the work; results are the same on every rank.
class Predictor {
 public:
  // Throws Error(kBadData) when weights, model and data do not fit each other, Error(kUsage) for details of a model
  // that has none. `communicator` must outlive it. Collective.
  Predictor(const config::Experiment& experiment, const InferenceOptions& options,
            distributed::Communicator& communicator);

  const config::Experiment& experiment() const { return experiment_; }
  const DataSource& source() const { return source_; }
  // Those of the split.
  const std::vector<int64_t>& samples() const { return samples_; }

  // Collective.
  Evaluation evaluate() { return evaluate(*source_.dataset, samples_); }
  // Of `dataset`, which differs from the source's in the frames of its samples only. Collective.
  Evaluation evaluate(const data::Dataset& dataset, const std::vector<int64_t>& samples);

  // What predicting the majority class, or the median, of the run's training samples scores; empty without labels, and
  // for data in place of the experiment's.
  metrics::Metrics baseline() const;

  // Standard deviations, by column, of the features of the modality at this place in the experiment's list, over the
  // frames of the run's training samples; 0 where a feature never varies. Throws Error(kBadData) when no training
  // sample has the modality. Collective.
  std::vector<double> deviations(int64_t position);

 private:
  distributed::Communicator& communicator() { return gpus_ ? *gpus_ : control_; }

  distributed::Communicator& control_;
  InferenceOptions options_;
  config::Experiment experiment_;
  Compute compute_;
  std::unique_ptr<distributed::Communicator> gpus_;
  DataSource source_;
  std::vector<int64_t> samples_;
  std::vector<batch::FeatureMoments> moments_;  // as run::Weights
  std::unique_ptr<models::Model> model_;
};

}  // namespace muster::training
