#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/config/experiment.pb.h"
#include "core/models/model.h"

namespace muster::models {

// What a model must know of the data.
struct DataShape {
  std::vector<std::string> modalities;  // in the experiment's order
  std::vector<int64_t> dims;
  int64_t outputs = 1;  // classes, or 1 for regression
};

// The model the (resolved) experiment names, with its starting weights. Throws Error(kBadConfig) when it does not fit
// the data.
std::unique_ptr<Model> make_model(const config::Experiment& experiment, const DataShape& shape);

}  // namespace muster::models
