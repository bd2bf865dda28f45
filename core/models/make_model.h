#pragma once

#include <memory>
#include <set>

#include "core/models/model.h"
#include "core/models/spec.h"

namespace muster::models {

// The pretrained encoders that the experiment names, one per modality; nullptr where there is none. Reads no weights.
// Throws Error(kBadConfig, kBadData, kIo).
std::vector<std::unique_ptr<Encoder>> make_encoders(const config::Experiment& experiment,
                                                    const std::vector<std::string>& modalities);
// What the model sees of data of this shape behind them.
DataShape encoded(DataShape shape, const std::vector<std::unique_ptr<Encoder>>& encoders);

// The model the (resolved) experiment names, with its starting weights (but for its
// encoders', see Model::load_pretrained) and its encoders. shape: of the data file. precomputed: modalities of which
// the model will get its encoder's frames in place of the file's rows (encoder.h). Throws Error(kBadConfig) when it
// does not fit the data.
std::unique_ptr<Model> make_model(const config::Experiment& experiment, const DataShape& shape,
                                  const std::set<std::string>& precomputed = {});

// For builders (ModelSpec::build): what the experiment says of parameters in general.
at::ScalarType dtype_of(const config::Experiment& experiment);
DecayScope decay_of(const config::Experiment& experiment);

}  // namespace muster::models
