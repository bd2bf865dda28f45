#include "core/training/inference.h"

#include <fmt/format.h>

#include "core/config/resolved_text.h"
#include "core/run/kept_encoders.h"
#include "core/run/weights.h"
#include "core/training/compute.h"
#include "core/training/same_job.h"

namespace muster::training {
namespace {

std::vector<int64_t> select_samples(const config::Experiment& experiment, const DataSource& source,
                                    const std::string& name) {
  if (name == "all") return source.usable;
  auto split = split_data(experiment, source, false);
  auto& samples = name == "train" ? split.train : name == "valid" ? split.valid : split.test;
  if (samples.empty())
    throw Error(ExitCode::kBadData, fmt::format("{}: the {} split is empty; choose another --split, or --split all",
                                                source.dataset->source(), name));
  return samples;
}

void require_data_of_the_run(const data::Dataset& dataset, const std::string& hash, const std::string& expected) {
  if (expected.empty() || hash == expected) return;
  throw SharedError(ExitCode::kBadData,
                    fmt::format("{} is not the data that the run was trained on (its SHA-256 differs from the one in "
                                "environment.json). To evaluate on it all the same, name it with --data",
                                dataset.source()));
}

}  // namespace

Inference infer(const config::Experiment& given, const InferenceOptions& options, distributed::Communicator& control) {
  Inference inference;
  const auto experiment = options.run_directory.empty() ? given : run::with_kept_encoders(given, options.run_directory);
  const Compute compute = prepare_compute(experiment.training(), control);
  const auto gpus = join_gpus(compute, control);
  distributed::Communicator& communicator = gpus ? *gpus : control;
  std::vector<int64_t> samples;
  run::Weights weights;
  std::unique_ptr<models::Model> model;
  require_same_job(communicator,
                   config::resolved_text(experiment) + options.split + (options.needs_labels ? " with labels" : ""));
  distributed::run_on_all_ranks(communicator,
                                [&] { inference.source = open_data(experiment, options.data, options.needs_labels); });
  if (communicator.size() > 1 || !options.expected_hash.empty())
    require_data_of_the_run(*inference.source.dataset, require_same_data(*inference.source.dataset, communicator),
                            options.expected_hash);
  distributed::run_on_all_ranks(communicator, [&] {
    samples = select_samples(experiment, inference.source, options.split);
    weights = run::read_weights(options.weights, inference.source.shape);
    model = models::make_model(experiment, inference.source.shape);
    run::load_weights(weights, options.weights, inference.source.index(), experiment.data().standardize(),
                      model->parameters());
  });
  require_finite_features(inference.source, communicator);
  require_same_weights(model->parameters(), weights.moments, communicator);
  require_same_encoders(experiment, model->parameters(), communicator);
  model->parameters().move_to(compute.device);
  const batch::BatchReader reader(*inference.source.dataset, inference.source.modalities, weights.moments,
                                  model->parameters().dtype(), compute.device,
                                  experiment.data().standardize_in_float32(), inference.source.limits,
                                  experiment.data().clip_standardized());
  Step step(*model, reader, communicator, {compute.microbatches, compute.reproducible, compute.bf16});
  inference.evaluation = evaluate(step, reader, communicator, samples, experiment.evaluation().batch_size(),
                                  experiment.seed(), options.needs_labels);
  if (options.needs_labels && options.data.empty())
    inference.baseline =
        baseline_metrics(inference.source.index(), split_data(experiment, inference.source, false).train, samples);
  return inference;
}

}  // namespace muster::training
