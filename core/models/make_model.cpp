#include "core/models/make_model.h"

#include <fmt/format.h>

#include "base/problems.h"

namespace muster::models {

std::unique_ptr<Model> make_model(const config::Experiment& experiment, const DataShape& shape) {
  const ModelSpec& spec = spec_of(experiment);
  if (const std::string problem = spec.modality_problem(shape.modalities); !problem.empty())
    throw Error(ExitCode::kBadConfig, fmt::format("data.modalities: {}", problem));
  if (shape.outputs < 2 && !spec.learns(data::Task::kRegression))
    throw Error(ExitCode::kBadConfig,
                fmt::format("{}: classification needs data with at least two classes", spec.name));
  Problems problems(spec.name);
  if (spec.check_data != nullptr) spec.check_data(experiment, shape, problems);
  problems.throw_if_any(ExitCode::kBadConfig);
  return spec.build(experiment, shape);
}

at::ScalarType dtype_of(const config::Experiment& experiment) {
  return experiment.training().precision() == config::Training::FP64 ? at::kDouble : at::kFloat;
}

DecayScope decay_of(const config::Experiment& experiment) {
  return experiment.optimizer().decay_scope() == config::Optimizer::ALL_PARAMETERS ? DecayScope::kAll
                                                                                   : DecayScope::kMatrices;
}

}  // namespace muster::models
