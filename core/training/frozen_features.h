#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/training/setup.h"

// A frozen encoder gives the same frames of a sample in every step. A run that keeps files computes them once, before
// its first step, into frozen_features/ of its directory:
//   KEY.h5      a dataset with the frames of the frozen modalities; KEY says what they depend on (extraction.h)
//   KEY.json    {"encoding": KEY, "sha256": of KEY.h5}, written last: without it the file counts as not there
//   KEY.parts/  what an interrupted job has finished
// Later jobs of the run use them, on any number of ranks; a finished run needs them no more.
namespace muster::training {

// Modalities whose encoders can run once: they are frozen, nothing on top of their layers is learnt (weighted_layers),
// and float32 holds what they give (not FP64).
std::set<std::string> frozen_modalities(const config::Experiment& experiment);

std::string frozen_features_folder(const std::string& run_directory);

// How much of that is done, of any key: grows with every finished piece; 0 where nothing is. What cannot be read counts
// as not there.
int64_t frozen_features_done(const std::string& run_directory);

// Bytes of all frames of the used modalities as batches have them, those of `frozen` as their encoders give them.
// encoders: per used modality.
int64_t bytes_with_frozen(const DataSource& data, const std::set<std::string>& frozen,
                          const std::vector<std::unique_ptr<models::Encoder>>& encoders, at::ScalarType dtype);

// For a run with run.frozen, before its encoders run: throws SharedError(kBadConfig) when training.data_on_device is
// ALWAYS and the frames that there will be do not fit. Collective.
void require_room_on_device(TrainingRun& run);

// For a run with run.frozen, whose weights are final: has the frames computed, or finds them whole, and makes reader
// and step on them. Nothing for other runs. Throws SharedError(kRequeue) when the run was asked to stop or its time was
// up: what was done by then is kept; SharedError(kIo) when something else is where the files go. Collective.
void use_frozen_features(TrainingRun& run);

// Of a run that has left its result; its step and reader are gone then. What cannot be removed stays. Collective.
void remove_frozen_features(TrainingRun& run);

}  // namespace muster::training
