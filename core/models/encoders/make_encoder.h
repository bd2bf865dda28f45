#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/models/encoders/pretrained_encoder.h"

namespace muster::models {

// The pretrained encoder in a folder, by the model_type of its config.json; its specs are checked against the files.
// Where the path is that of a config.json itself: the encoder that it describes, with random starting weights.
// position: the modality's place in the experiment's list. Throws Error(kBadData) for a folder that is damaged or asks
// for what is not implemented, Error(kIo) for one that cannot be read, Error(kBadConfig) for settings that do not fit
// it (top_layers and layer beyond its layers, masking for text): "encoders[I].FIELD: ...", where I is `index`, the
// block's place in the experiment.
std::unique_ptr<Encoder> make_encoder(const config::Encoder& config, int64_t index, int64_t position);
// The same for a folder that is open already, or has no weights; config.path is not looked at.
std::unique_ptr<Encoder> make_encoder(const config::Encoder& config, int64_t index, int64_t position,
                                      std::shared_ptr<const PretrainedFolder> folder);

// What a person should know of how raw samples are prepared for an encoder that make_encoder() accepts, or for all of
// an experiment's: what its folder does not say, and what of it is not known here. Throw as make_encoder().
std::vector<std::string> preparation_notes(const config::Encoder& config, const PretrainedFolder& folder);
std::vector<std::string> preparation_notes(const config::Experiment& experiment);

// The families, by model_type: wav2vec2, hubert and wavlm; bert, roberta and xlm-roberta.
std::unique_ptr<Encoder> make_speech_encoder(const EncoderBlock& block);
std::unique_ptr<Encoder> make_text_encoder(const EncoderBlock& block);

}  // namespace muster::models
