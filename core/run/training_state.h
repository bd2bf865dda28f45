#pragma once

#include <map>
#include <string>
#include <vector>

#include "checkpoints/safetensors.h"
#include "core/batch/standardizer.h"
#include "core/config/stored.h"
#include "core/models/parameters.h"
#include "core/optim/adamw.h"
#include "core/run/training_state.pb.h"
#include "core/run/weights.h"

// What a checkpoint holds: where the run stands, what its results rest on, and tensors.
namespace muster::run {

using config::kResultsVersion;
using stored::Provenance;
using stored::TrainingState;

Provenance provenance_of_this_job(const std::string& data_sha256, const std::string& numerics);

// One sentence for each difference that would change the results of a run that began with `before` and continues with
// `now`.
std::vector<std::string> changes_of_results(const Provenance& before, const Provenance& now);

// To and from the bytes in a checkpoint. `source` names it in messages. Throws Error(kBadData).
std::string to_bytes(TrainingState state, const Provenance& provenance);
TrainingState from_bytes(const std::string& bytes, const std::string& source);

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
