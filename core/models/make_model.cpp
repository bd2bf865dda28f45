#include "core/models/make_model.h"

#include <fmt/format.h>

#include "base/problems.h"
#include "core/models/encoders/make_encoder.h"

namespace muster::models {

std::vector<std::unique_ptr<Encoder>> make_encoders(const config::Experiment& experiment,
                                                    const std::vector<std::string>& modalities) {
  std::vector<std::unique_ptr<Encoder>> encoders(modalities.size());
  for (int64_t index = 0; index < experiment.encoders_size(); ++index) {
    const config::Encoder& config = experiment.encoders(static_cast<int>(index));
    for (size_t m = 0; m < modalities.size(); ++m)
      if (modalities[m] == config.modality()) encoders[m] = make_encoder(config, index, static_cast<int64_t>(m));
  }
  return encoders;
}

DataShape encoded(DataShape shape, const std::vector<std::unique_ptr<Encoder>>& encoders) {
  for (size_t m = 0; m < encoders.size(); ++m)
    if (encoders[m]) shape.dims[m] = encoders[m]->dim();
  return shape;
}

std::unique_ptr<Model> make_model(const config::Experiment& experiment, const DataShape& shape,
                                  const std::set<std::string>& precomputed) {
  const ModelSpec& spec = spec_of(experiment);
  if (const std::string problem = spec.modality_problem(shape.modalities); !problem.empty())
    throw Error(ExitCode::kBadConfig, fmt::format("data.modalities: {}", problem));
  if (!spec.learns(shape.task))
    throw Error(ExitCode::kBadConfig, fmt::format("{}: it is not for {}", spec.name, name_of(shape.task)));
  if (shape.task == data::Task::kClassification && shape.outputs < 2)
    throw Error(ExitCode::kBadConfig,
                fmt::format("{}: classification needs data with at least two classes", spec.name));
  auto encoders = make_encoders(experiment, shape.modalities);
  const DataShape seen = encoded(shape, encoders);
  Problems problems(spec.name);
  if (spec.check_data != nullptr) spec.check_data(experiment, seen, problems);
  problems.throw_if_any(ExitCode::kBadConfig);
  auto model = spec.build(experiment, seen);
  for (size_t m = 0; m < encoders.size(); ++m)
    if (encoders[m] && precomputed.count(shape.modalities[m]))
      encoders[m] = models::precomputed(std::move(encoders[m]));
  model->put_in_front(std::move(encoders));
  return model;
}

at::ScalarType dtype_of(const config::Experiment& experiment) {
  return experiment.training().precision() == config::Training::FP64 ? at::kDouble : at::kFloat;
}

DecayScope decay_of(const config::Experiment& experiment) {
  return experiment.optimizer().decay_scope() == config::Optimizer::ALL_PARAMETERS ? DecayScope::kAll
                                                                                   : DecayScope::kMatrices;
}

}  // namespace muster::models
