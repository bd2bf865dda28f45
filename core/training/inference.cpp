#include "core/training/inference.h"

#include "core/training/environment.h"
#include "core/training/weights.h"

namespace muster::training {
namespace {

std::vector<int64_t> select_samples(const config::Experiment& experiment, const DataSource& source, const std::string& name) {
  if (name == "all") return source.usable;
  auto split = split_data(experiment, source, false);
  auto& samples = name == "train" ? split.train : name == "valid" ? split.valid : split.test;
  if (samples.empty())
    throw distributed::Error(distributed::ExitCode::kBadData,
                             source.dataset->source() + ": the " + name + " split is empty; choose another --split, or --split all");
  return samples;
}

void require_same_data(const data::Dataset& dataset, const std::string& expected) {
  if (dataset.content_hash() == expected) return;
  throw distributed::Error(distributed::ExitCode::kBadData,
                           dataset.source() + " is not the data that the run was trained on (its SHA-256 differs from the one in "
                                              "environment.json). To evaluate on it all the same, name it with --data");
}

}  // namespace

Inference infer(const config::Experiment& experiment, const InferenceOptions& options, distributed::Communicator& communicator) {
  Inference inference;
  set_threads(static_cast<int>(experiment.training().threads()), communicator);
  std::vector<int64_t> samples;
  Weights weights;
  std::unique_ptr<models::Model> model;
  distributed::together(communicator, [&] {
    inference.source = open_data(experiment, options.data, options.needs_labels);
    if (communicator.rank() == 0 && !options.expected_hash.empty()) require_same_data(*inference.source.dataset, options.expected_hash);
    samples = select_samples(experiment, inference.source, options.split);
    weights = read_weights(options.weights, inference.source.shape);
    if (inference.source.index().task == data::Task::kClassification) require_same_classes(weights, inference.source.index(), options.weights);
    model = models::make_model(experiment, inference.source.shape);
    model->parameters().load(weights.parameters, options.weights);
    if (weights.moments.empty() == experiment.data().standardize())
      throw distributed::Error(distributed::ExitCode::kBadData,
                               options.weights + ": data.standardize is " + (experiment.data().standardize() ? "true" : "false") +
                                   " in the config, but the weights were trained " + (weights.moments.empty() ? "without" : "with") +
                                   " it; use the config.txtpb of the run they come from");
  });
  require_finite_features(inference.source, communicator);
  const batch::BatchReader reader(*inference.source.dataset, inference.source.modalities, weights.moments, model->parameters().dtype());
  Step step(*model, reader, communicator, experiment.training().precision() == config::Training::BF16);
  inference.evaluation = evaluate(step, reader, communicator, samples, experiment.evaluation().batch_size(), experiment.seed(),
                                  options.needs_labels);
  return inference;
}

}  // namespace muster::training
