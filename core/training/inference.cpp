#include "core/training/inference.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/config/resolved_text.h"
#include "core/run/kept_encoders.h"
#include "core/run/weights.h"
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

Predictor::Predictor(const config::Experiment& experiment, const InferenceOptions& options,
                     distributed::Communicator& control)
    : control_(control),
      options_(options),
      experiment_(options.run_directory.empty() ? experiment
                                                : run::with_kept_encoders(experiment, options.run_directory)),
      compute_(prepare_compute(experiment_.training(), control)),
      gpus_(join_gpus(compute_, control)) {
  run::Weights weights;
  require_same_job(communicator(), config::resolved_text(experiment_) + options.split +
                                       (options.needs_labels ? " with labels" : "") + options.request);
  distributed::run_on_all_ranks(communicator(),
                                [&] { source_ = open_data(experiment_, options.data, options.needs_labels); });
  if (communicator().size() > 1 || !options.expected_hash.empty())
    require_data_of_the_run(*source_.dataset, require_same_data(*source_.dataset, communicator()),
                            options.expected_hash);
  distributed::run_on_all_ranks(communicator(), [&] {
    samples_ = select_samples(experiment_, source_, options.split);
    weights = run::read_weights(options.weights, source_.shape);
    model_ = models::make_model(experiment_, source_.shape);
    if (options.with_details && model_->detail_names().empty())
      throw Error(ExitCode::kUsage,
                  fmt::format("{} has no gates, or anything else to tell of a sample beside its prediction",
                              models::spec_of(experiment_).title));
    run::load_weights(weights, options.weights, source_.index(), experiment_.data().standardize(),
                      model_->parameters());
  });
  require_finite_features(source_, communicator());
  require_same_weights(model_->parameters(), weights.moments, communicator());
  require_same_encoders(experiment_, model_->parameters(), communicator());
  moments_ = weights.moments;
  model_->parameters().move_to(compute_.device);
}

Evaluation Predictor::evaluate(const data::Dataset& dataset, const std::vector<int64_t>& samples) {
  const batch::BatchReader reader(dataset, source_.modalities, moments_, model_->parameters().dtype(), compute_.device,
                                  experiment_.data().standardize_in_float32(), source_.limits,
                                  experiment_.data().clip_standardized());
  Step step(*model_, reader, communicator(), {compute_.microbatches, compute_.reproducible, compute_.bf16});
  Evaluation evaluation =
      training::evaluate(step, reader, communicator(), samples, experiment_.evaluation().batch_size(),
                         experiment_.seed(), options_.needs_labels, options_.with_details);
  if (options_.with_details) evaluation.predictions.detail_names = model_->detail_names();
  return evaluation;
}

metrics::Metrics Predictor::baseline() const {
  if (!options_.needs_labels || !options_.data.empty()) return {};
  return baseline_metrics(source_.index(), split_data(experiment_, source_, false).train, samples_);
}

std::vector<double> Predictor::deviations(int64_t position) {
  batch::FeatureMoments moments;
  if (!moments_.empty()) {
    moments = moments_[static_cast<size_t>(position)];
  } else {
    DataSource own;
    std::vector<int64_t> train;
    distributed::run_on_all_ranks(communicator(), [&] {
      own = options_.data.empty() ? source_ : open_data(experiment_, "", /*labels_required=*/false);
      own.modalities = {own.index().find_modality(source_.shape.modalities[static_cast<size_t>(position)])};
      train = split_data(experiment_, own, false).train;
      const auto& modality = own.index().modalities[static_cast<size_t>(own.modalities[0])];
      if (std::none_of(train.begin(), train.end(), [&](int64_t sample) { return modality.length(sample) > 0; }))
        throw Error(ExitCode::kBadData,
                    fmt::format("{}: no training sample has {}, so there is no deviation to measure "
                                "its noise by",
                                own.dataset->source(), modality.name));
    });
    if (!options_.data.empty())
      require_data_of_the_run(*own.dataset, require_same_data(*own.dataset, communicator()), options_.training_hash);
    moments = fit_moments(own, train, communicator())[0];
  }
  const double* const deviation = moments.standard_deviation.const_data_ptr<double>();
  std::vector<double> deviations(deviation, deviation + moments.standard_deviation.numel());
  // Exactly 1 is what the standardizer takes for a feature that never varies.
  std::replace(deviations.begin(), deviations.end(), 1.0, 0.0);
  return deviations;
}

}  // namespace muster::training
