#pragma once

#include <map>
#include <string>
#include <vector>

#include "checkpoints/safetensors.h"
#include "core/batch/standardizer.h"
#include "core/models/make_model.h"

namespace muster::run {

// A weights file (safetensors): the model's parameters by name, and, if the data was standardized, per modality
// standardize.<modality>.mean and .standard_deviation (float64 [dim]), so that the file is all a prediction needs
// besides the config.
struct Weights {
  std::map<std::string, at::Tensor> parameters;
  std::vector<batch::FeatureMoments> moments;  // in the order of the experiment's modalities; empty: not standardized
  std::map<std::string, std::string> metadata;
};

// Metadata of the weights of a run: format, experiment, step, the number of features of each modality as JSON
// ("features"), and for classification the class names in order.
std::map<std::string, std::string> weights_metadata(const std::string& experiment, uint64_t step,
                                                    const data::DatasetIndex& index);

// Puts `weights` (read from `source`) into the model. Throws Error(kBadData), with nothing changed, when they were
// trained on other classes or on the same in another order, when they expect standardized features and `standardize` is
// false or the other way round, or when names or shapes differ.
void load_weights(const Weights& weights, const std::string& source, const data::DatasetIndex& index, bool standardize,
                  models::Parameters& parameters);

// Parameters by name, and moments: what a weights file holds. `modalities`: names for the moments.
std::vector<checkpoints::NamedTensor> weight_tensors(const std::vector<std::pair<std::string, at::Tensor>>& parameters,
                                                     const std::vector<batch::FeatureMoments>& moments,
                                                     const std::vector<std::string>& modalities);

// Writes them to `path`, whole or not at all. Returns the file's fingerprint. Throws Error(kIo).
std::string write_weights(const std::string& path, const std::vector<checkpoints::NamedTensor>& tensors,
                          const std::map<std::string, std::string>& metadata);

// Tells parameters from moments in tensors that were read from `source`. Throws as read_weights.
Weights weights_from(const std::map<std::string, at::Tensor>& tensors,
                     const std::map<std::string, std::string>& metadata, const std::string& source,
                     const models::DataShape& shape);

// Reads a weights file. `modalities` and `dims` say which moments to expect if there are any. Throws Error(kBadData)
// when the file is not valid or its moments do not fit.
Weights read_weights(const std::string& path, const models::DataShape& shape);

}  // namespace muster::run
