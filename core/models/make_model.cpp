#include "core/models/make_model.h"

#include "core/models/foal_net.h"
#include "core/models/miar.h"
#include "base/error.h"

namespace muster::models {
namespace {


void require_foal_net_shape(const DataShape& shape) {
  if (shape.modalities.size() != 2)
    throw Error(ExitCode::kBadConfig,
                "data.modalities: Foal-Net takes exactly two modalities, audio then vision; got " +
                    std::to_string(shape.modalities.size()));
  if (shape.modalities[0] == "vision" || shape.modalities[1] == "audio")
    throw Error(ExitCode::kBadConfig,
                "data.modalities: Foal-Net takes the audio modality first, then the visual one; got \"" +
                    shape.modalities[0] + "\" then \"" + shape.modalities[1] + "\"");
  if (shape.outputs < 2)
    throw Error(ExitCode::kBadConfig, "foal_net: classification needs data with at least two classes");
}

}  // namespace

std::unique_ptr<Model> make_model(const config::Experiment& experiment, const DataShape& shape) {
  const at::ScalarType dtype = experiment.training().precision() == config::Training::FP64 ? at::kDouble : at::kFloat;
  const DecayScope decay = experiment.optimizer().decay_scope() == config::Optimizer::ALL_PARAMETERS
                               ? DecayScope::kAll
                               : DecayScope::kMatrices;
  if (experiment.has_foal_net()) {
    require_foal_net_shape(shape);
    return std::make_unique<FoalNet>(experiment.foal_net(), FoalNet::Sizes{shape.dims[0], shape.dims[1], shape.outputs},
                                     decay, dtype, experiment.seed());
  }
  if (shape.modalities.size() < 2)
    throw Error(ExitCode::kBadConfig, "data.modalities: MIAR relates modalities to each other and needs at least two");
  for (const auto& name : shape.modalities)
    if (name == "joint")
      throw Error(ExitCode::kBadConfig,
                  "data.modalities: MIAR calls its own fourth stream \"joint\": give the modality another name");
  return std::make_unique<Miar>(experiment.miar(), Miar::Sizes{shape.modalities, shape.dims, shape.outputs}, decay,
                                dtype, experiment.seed());
}

}  // namespace muster::models
