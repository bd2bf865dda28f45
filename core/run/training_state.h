#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "checkpoints/safetensors.h"
#include "core/batch/standardizer.h"
#include "core/config/stored.h"
#include "core/models/parameters.h"
#include "core/optim/adamw.h"
#include "core/run/weights.h"

// What a checkpoint holds: where the run stands, what its results rest on, and tensors.
namespace muster::run {

// Where a run stands, without its tensors. The same on every rank whenever it is saved.
struct TrainingState {
  uint64_t steps_done = 0;  // batches worked on, skipped ones included: what random choices are keyed by
  uint64_t skipped_steps = 0;
  uint64_t skipped_in_a_row = 0;

  bool has_best = false;  // from the first evaluation on
  double best_value = std::numeric_limits<double>::quiet_NaN();
  uint64_t best_step = 0;
  int64_t best_epoch = 0;
  std::string best_fingerprint;
  uint32_t evaluations_without_improvement = 0;
  uint64_t validated_step = 0;
  bool stopped_early = false;
  double seconds = 0;  // of all jobs of the run so far
};

// What the numbers of a run rest on besides its experiment.
struct Provenance {
  std::string data_sha256;
  uint32_t results_version = 0;
  std::string muster;    // version and commit
  std::string torch;     // version
  std::string numerics;  // as training::Compute::numerics; empty when not reproducible
};

using config::kResultsVersion;

Provenance provenance_of_this_job(const std::string& data_sha256, const std::string& numerics);

// One sentence for each difference that would change the results of a run that began with `before` and continues with
// `now`.
std::vector<std::string> changes_of_results(const Provenance& before, const Provenance& now);

// To and from the bytes in a checkpoint. `source` names it in messages. Throws Error(kBadData).
std::string to_bytes(const TrainingState& state, const Provenance& provenance);
void from_bytes(const std::string& bytes, const std::string& source, TrainingState& state, Provenance& provenance);

// The tensors of a checkpoint, by name:
//   <parameter>                           as in weights files, like
//   standardize.<modality>.mean, .standard_deviation
//   optimizer.exp_avg.<parameter>, optimizer.exp_avg_sq.<parameter>, optimizer.step
//   best.<parameter>                      the best weights so far, where they are not the present ones
// best: flat, or undefined. Views where possible: to be used before the next step.
std::vector<checkpoints::NamedTensor> tensors_of(const models::Parameters& parameters, const optim::AdamW& optimizer,
                                                 const std::vector<batch::FeatureMoments>& moments,
                                                 const std::vector<std::string>& modalities, const at::Tensor& best);

// Whether a tensor of a checkpoint is one that weights files hold as well.
bool belongs_to_weights(const std::string& name);

// The part of a checkpoint's tensors that a weights file holds. Throws as read_weights; `source` is for messages.
Weights weights_in(const std::map<std::string, at::Tensor>& tensors, const std::string& source,
                   const models::DataShape& shape);

// Puts the optimizer's part back. Throws Error(kBadData) when a tensor is missing or does not fit.
void restore_optimizer(const std::map<std::string, at::Tensor>& tensors, const std::string& source,
                       const models::Parameters& parameters, optim::AdamW& optimizer);

// The best weights, laid out as parameters.values(). Throws likewise.
at::Tensor best_in(const std::map<std::string, at::Tensor>& tensors, const std::string& source,
                   const models::Parameters& parameters);

}  // namespace muster::run
