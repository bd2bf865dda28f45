#pragma once

#include <cstdint>
#include <vector>

#include "core/config/load.h"
#include "core/data/dataset.h"

// Which samples make up each global batch: pure functions of (seed, epoch), the same on every rank and for any number
// of ranks.
namespace muster::batch {

// The samples of one epoch in training order; as many as `samples` has.
// SHUFFLE: every sample once, ordered by one random 64-bit key each. CLASS_BALANCED: independent draws, the class
// uniformly among those present, then a sample uniformly within it; `labels` (aligned with `samples`) is needed for
// this only.
std::vector<int64_t> epoch_order(const std::vector<int64_t>& samples, const std::vector<double>& labels,
                                 config::Training::Sampling sampling, uint64_t seed, uint32_t epoch);

// How long a run is and which samples each of its steps takes: pure functions of the experiment and the step's number,
// the same on every rank and for any number of ranks.
class TrainingPlan {
 public:
  // `train`: the training samples. Throws SharedError(kBadConfig) when they do not fill one batch.
  TrainingPlan(const config::LoadedExperiment& loaded, const data::DatasetIndex& index, std::vector<int64_t> train);

  uint64_t steps_per_epoch() const { return steps_per_epoch_; }
  uint64_t total_steps() const { return total_steps_; }
  // Steps count from 0, epochs from 1.
  int64_t epoch_of(uint64_t step) const { return static_cast<int64_t>(step / steps_per_epoch_) + 1; }
  // The global batch of a step, in its order. Asking for steps in ascending order is cheap.
  std::vector<int64_t> samples(uint64_t step);

 private:
  const config::Experiment& config_;
  std::vector<int64_t> train_;
  std::vector<double> labels_;  // of train_
  uint64_t steps_per_epoch_ = 0;
  uint64_t total_steps_ = 0;
  int64_t ordered_epoch_ = 0;
  std::vector<int64_t> order_;  // of ordered_epoch_
};

}  // namespace muster::batch
