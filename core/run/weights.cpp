#include "core/run/weights.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoints/fingerprint.h"
#include "checkpoints/safetensors.h"

namespace muster::run {
namespace {

const std::string kPrefix = "standardize.";

void require_same_task(const Weights& weights, const data::DatasetIndex& index, const std::string& source) {
  const auto found = weights.metadata.find("task");
  // An earlier version did not say it, and knew two: one has classes. Of other programs' files nothing is known.
  const std::string trained = found != weights.metadata.end()         ? found->second
                              : weights.metadata.count("class_names") ? "classification"
                              : weights.metadata.count("experiment")  ? "regression"
                                                                      : "";
  if (trained.empty() || trained == name_of(index.task)) return;
  throw Error(ExitCode::kBadData, fmt::format("{}: the weights were trained for {}, but the data's task is {}; choose "
                                              "other labels with data.target, or other data",
                                              source, trained, name_of(index.task)));
}

void require_same_classes(const Weights& weights, const data::DatasetIndex& index, const std::string& source) {
  const auto found = weights.metadata.find("class_names");
  if (found == weights.metadata.end()) return;  // not one of our runs' files: nothing is known
  const std::string here = nlohmann::json(index.class_names).dump();
  if (found->second == here) return;
  throw Error(ExitCode::kBadData,
              fmt::format("{}: the weights were trained on the classes {}, but the data has {}; a class's number would "
                          "mean another class",
                          source, found->second, here));
}

// The number of features of each modality that the weights were trained on, as far as the file says it: by its
// metadata, else by its moments.
void require_same_features(const std::map<std::string, at::Tensor>& moments,
                           const std::map<std::string, std::string>& metadata, const std::string& source,
                           const models::DataShape& shape) {
  const auto said = metadata.find("features");
  const auto features = parse_json(said == metadata.end() ? "" : said->second);
  for (size_t m = 0; m < shape.modalities.size(); ++m) {
    const std::string& modality = shape.modalities[m];
    auto trained = number_in(features, modality.c_str());
    // Without elements: a waveform or tokens, whose features are made by an encoder.
    if (const auto mean = moments.find(kPrefix + modality + ".mean");
        !trained && mean != moments.end() && mean->second.numel() > 0)
      trained = static_cast<double>(mean->second.numel());
    if (trained && *trained != static_cast<double>(shape.dims[m]))
      throw Error(ExitCode::kBadData,
                  fmt::format("{}: modality {} has {} here, but the weights were trained on {}: they are of other data",
                              source, in_quotes(modality), plural(shape.dims[m], "feature"), *trained));
  }
}

}  // namespace

std::vector<checkpoints::NamedTensor> weight_tensors(const std::vector<std::pair<std::string, at::Tensor>>& parameters,
                                                     const std::vector<batch::FeatureMoments>& moments,
                                                     const std::vector<std::string>& modalities) {
  std::vector<checkpoints::NamedTensor> tensors;
  for (const auto& [name, tensor] : parameters) tensors.push_back({name, tensor});
  for (size_t m = 0; m < moments.size(); ++m) {
    tensors.push_back({kPrefix + modalities[m] + ".mean", moments[m].mean});
    tensors.push_back({kPrefix + modalities[m] + ".standard_deviation", moments[m].standard_deviation});
  }
  return tensors;
}

std::string write_weights(const std::string& path, const std::vector<checkpoints::NamedTensor>& tensors,
                          const std::map<std::string, std::string>& metadata) {
  checkpoints::write_safetensors(path, tensors, metadata);
  return checkpoints::fingerprint(tensors);
}

std::map<std::string, std::string> weights_metadata(const std::string& experiment, uint64_t step,
                                                    const data::DatasetIndex& index) {
  std::map<std::string, std::string> metadata{
      {"format", "muster-weights"}, {"experiment", experiment}, {"step", fmt::format("{}", step)}};
  nlohmann::json features = nlohmann::json::object();
  for (const auto& modality : index.modalities)
    if (modality.kind == data::ModalityKind::kFeatures) features[modality.name] = modality.dim;
  metadata["features"] = features.dump();
  metadata["task"] = name_of(index.task);
  if (!index.class_names.empty()) metadata["class_names"] = nlohmann::json(index.class_names).dump();
  return metadata;
}

void load_weights(const Weights& weights, const std::string& source, const data::DatasetIndex& index, bool standardize,
                  models::Parameters& parameters) {
  require_same_task(weights, index, source);
  if (index.task != data::Task::kRegression) require_same_classes(weights, index, source);
  if (weights.moments.empty() == standardize)
    throw Error(
        ExitCode::kBadData,
        fmt::format("{}: these weights were trained {} data.standardize, but here it is {}: they would see features of "
                    "another scale. Set data.standardize as in the run they come from (its config.txtpb)",
                    source, standardize ? "without" : "with", standardize));
  parameters.load(weights.parameters, source);
}

Weights weights_from(const std::map<std::string, at::Tensor>& tensors,
                     const std::map<std::string, std::string>& metadata, const std::string& source,
                     const models::DataShape& shape) {
  Weights weights;
  weights.metadata = metadata;
  std::map<std::string, at::Tensor> moments;
  for (const auto& [name, tensor] : tensors)
    (name.rfind(kPrefix, 0) == 0 ? moments : weights.parameters).emplace(name, tensor);
  require_same_features(moments, metadata, source, shape);
  if (moments.empty()) return weights;
  for (size_t m = 0; m < shape.modalities.size(); ++m) {
    const bool standardized = shape.kinds.empty() || shape.kinds[m] == data::ModalityKind::kFeatures;
    const int64_t elements = standardized ? shape.dims[m] : 0;
    batch::FeatureMoments read;
    for (auto [field, target] :
         {std::pair{".mean", &read.mean}, std::pair{".standard_deviation", &read.standard_deviation}}) {
      const std::string name = kPrefix + shape.modalities[m] + field;
      const auto found = moments.find(name);
      if (found == moments.end() || found->second.scalar_type() != at::kDouble ||
          found->second.sizes() != at::IntArrayRef{elements})
        throw Error(ExitCode::kBadData,
                    fmt::format("{}: the standardization of modality \"{}\" ({}, F64 [{}]) is {}: these weights were "
                                "trained on other modalities or features",
                                source, shape.modalities[m], name, elements,
                                found == moments.end() ? "missing" : "of another shape or dtype"));
      *target = found->second;
    }
    weights.moments.push_back(read);
  }
  return weights;
}

Weights read_weights(const std::string& path, const models::DataShape& shape) {
  const auto file = checkpoints::read_safetensors(path);
  return weights_from(file.tensors, file.metadata, path, shape);
}

}  // namespace muster::run
