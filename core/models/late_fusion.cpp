// Late fusion: each modality is summarised by itself, and a small network joins the summaries. A baseline, and the
// shortest model here: docs/add_a_model.md walks through this file.
#include "core/config/check.h"
#include "core/kernels/attention.h"
#include "core/models/layers.h"
#include "core/models/make_model.h"

namespace muster::models {
namespace {

std::vector<ParameterSpec> late_fusion_parameters(const config::LateFusion& config, const DataShape& shape) {
  const int64_t dim = config.dim(), hidden = config.hidden_dim();
  const int64_t joined = dim * static_cast<int64_t>(shape.modalities.size());
  std::vector<ParameterSpec> specs;
  for (size_t m = 0; m < shape.modalities.size(); ++m)
    add_linear(specs, "encoder." + shape.modalities[m], dim, shape.dims[m],
               Initial::xavier_uniform(shape.dims[m], dim));
  add_linear(specs, "head.input", hidden, joined, Initial::xavier_uniform(joined, hidden));
  add_linear(specs, "head.output", shape.outputs, hidden, Initial::xavier_uniform(hidden, shape.outputs));
  return specs;
}

class LateFusion final : public Model {
 public:
  LateFusion(const config::Experiment& experiment, const DataShape& shape)
      : Model(Parameters(late_fusion_parameters(experiment.late_fusion(), shape), decay_of(experiment),
                         dtype_of(experiment), experiment.seed()),
              shape.outputs, {{name_of(shape.task)}}),
        config_(experiment.late_fusion()),
        modalities_(shape.modalities) {}

  ForwardOutput forward(const batch::Batch& batch, const Embedded&, const std::vector<batch::Ragged>&,
                        const GlobalBatch& global, const StepContext& step) const override {
    // Masks are keyed by sample and layer: 0 is the head, 1 + m is modality m.
    const auto dropped = [&](const at::Tensor& x, uint32_t layer) {
      const double p = step.training ? config_.dropout() : 0;
      return kernels::dropout_rows(x, p, batch.batch_index, step.dropout(layer));
    };
    std::vector<at::Tensor> summaries;
    for (size_t m = 0; m < modalities_.size(); ++m) {
      // A missing modality has a mean of 0: the encoder then sees its bias only.
      const at::Tensor mean = kernels::segment_mean(batch.modalities[m].values, batch.modalities[m].offsets);
      summaries.push_back(dropped(at::relu(linear(parameters_, "encoder." + modalities_[m], mean)), 1 + m));
    }
    const at::Tensor hidden = dropped(at::relu(linear(parameters_, "head.input", at::cat(summaries, 1))), 0);
    ForwardOutput result;
    result.outputs = linear(parameters_, "head.output", hidden).to(parameters_.dtype());
    if (batch.labels.defined()) result.losses.push_back(prediction_loss(result.outputs, batch.labels, global.size()));
    return result;
  }

 private:
  config::LateFusion config_;
  std::vector<std::string> modalities_;
};

ModelSpec late_fusion_spec() {
  ModelSpec spec;
  spec.name = "late_fusion";
  spec.title = "Late fusion";
  spec.check = [](const config::Checker& block) {
    block.count("dim");
    block.count("hidden_dim");
    block.share("dropout");
  };
  spec.build = [](const config::Experiment& experiment, const DataShape& shape) -> std::unique_ptr<Model> {
    return std::make_unique<LateFusion>(experiment, shape);
  };
  return spec;
}

const RegisteredModel registered_late_fusion(late_fusion_spec());

}  // namespace
}  // namespace muster::models
