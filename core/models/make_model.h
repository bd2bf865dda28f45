#pragma once

#include <memory>

#include "core/models/model.h"
#include "core/models/spec.h"

namespace muster::models {

// The model the (resolved) experiment names, with its starting weights. Throws Error(kBadConfig) when it does not fit
// the data.
std::unique_ptr<Model> make_model(const config::Experiment& experiment, const DataShape& shape);

// For builders (ModelSpec::build): what the experiment says of parameters in general.
at::ScalarType dtype_of(const config::Experiment& experiment);
DecayScope decay_of(const config::Experiment& experiment);

}  // namespace muster::models
