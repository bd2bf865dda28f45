#pragma once

#include <string>

#include "core/config/experiment.pb.h"
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
  bool needs_labels = true;   // true: metrics and losses; false: predictions, whether there are labels or not
};

struct Inference {
  DataSource source;
  Evaluation evaluation;
  // What predicting the majority class, or the median, of the run's training samples scores; empty without labels, and
  // for data in place of the experiment's.
  metrics::Metrics baseline;
};

// Applies saved weights to data, with the standardization that is stored with them. Ranks share the work; the result is
// the same on every rank. Throws Error(kBadData) when weights, model and data do not fit each other. Collective.
Inference infer(const config::Experiment& experiment, const InferenceOptions& options,
                distributed::Communicator& communicator);

}  // namespace muster::training
