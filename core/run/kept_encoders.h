#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "core/config/experiment.pb.h"
#include "core/run/run_directory.h"

// A run keeps what describes its pretrained encoders, encoders/<modality>/config.json and preprocessor_config.json:
// with the weights that it has trained or taken over itself, nothing of their folders is needed any more.
namespace muster::run {

// Copies into the run directory those descriptions that it does not have yet. Throws Error(kIo).
void keep_encoders(const config::Experiment& experiment, RunDirectory& directory);

// The experiment with the kept descriptions in place of the folders, where there are some: for a run whose weights are
// its own. The pretrained weights of a description cannot be loaded.
config::Experiment with_kept_encoders(config::Experiment experiment, const std::string& run_directory);

// For a run that begins again from its encoders' folders: throws Error(kBadConfig) where one describes another encoder
// than what the run has kept, Error(kIo) where one is not there any more.
void require_kept_encoders(const config::Experiment& experiment, const std::string& run_directory);

// Whether the encoder's path names, by its content, the one that the run has recorded for this modality. Reads its
// weights.
bool is_recorded_encoder(const config::Encoder& encoder, const std::string& run_directory);

// What describes the encoders, as one text.
std::string encoder_descriptions(const config::Experiment& experiment);

// {modality: {"path", "sha256"}} of the experiment's encoders; null when it has none. Reads their weights.
nlohmann::json encoder_hashes(const config::Experiment& experiment);
// The same as environment.json of a run directory says; an empty object where it says nothing.
nlohmann::json recorded_encoders(const std::string& run_directory);

}  // namespace muster::run
