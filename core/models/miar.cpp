#include "core/models/miar.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/config/check.h"
#include "core/kernels/attention.h"
#include "core/kernels/upload.h"
#include "core/losses/alignment.h"
#include "core/models/layers.h"
#include "core/models/make_model.h"
#include "core/models/miar_layout.h"

namespace muster::models {
namespace {

// Dropout layers: 0 is the head; then two per layer and stream.
uint32_t layer_number(uint32_t layer, size_t stream, uint32_t which) {
  return 1 + (layer * 64 + static_cast<uint32_t>(stream)) * 2 + which;
}
constexpr uint32_t kHead = 0;

std::vector<ParameterSpec> miar_specs(const config::Miar& config, const Miar::Sizes& sizes) {
  const int64_t d = config.dim(), f = config.ffn_dim(), p = config.alignment_dim();
  const int64_t count = static_cast<int64_t>(sizes.modalities.size());
  const Initial square = Initial::xavier_uniform(d, d);
  std::vector<ParameterSpec> specs;
  auto streams = sizes.modalities;
  streams.push_back("joint");
  for (int64_t m = 0; m < count; ++m) {
    const std::string& name = sizes.modalities[m];
    const std::string encoder = "encoder." + name, alignment = "alignment." + name;
    add_linear(specs, encoder + ".input", d, sizes.dims[m], Initial::xavier_uniform(sizes.dims[m], d));
    add_layer_norm(specs, encoder + ".norm", d);
    add_linear(specs, alignment + ".projection.input", d, d, square);
    add_linear(specs, alignment + ".projection.output", p, d, Initial::xavier_uniform(d, p));
    add_layer_norm(specs, alignment + ".norm", p);
  }
  for (const auto& stream : streams) {
    specs.push_back({"token." + stream, {d}, Initial::normal(0.02)});
    add_layer_norm(specs, "token_norm." + stream, d);
    for (uint32_t layer = 0; layer < config.layers(); ++layer) {
      const std::string name = fmt::format("layers.{}.{}", layer, stream);
      add_layer_norm(specs, name + ".attention_norm", d);
      add_linear(specs, name + ".attention.query", d, d, square);
      // Keys and values are two [d, d] maps stacked: each has its own fan.
      add_key_value(specs, name + ".attention.key_value", d, d, square);
      add_linear(specs, name + ".attention.output", d, d, square);
      add_layer_norm(specs, name + ".ffn_norm", d);
      add_linear(specs, name + ".ffn.input", f, d, Initial::xavier_uniform(d, f));
      add_linear(specs, name + ".ffn.output", d, f, Initial::xavier_uniform(f, d));
    }
  }
  specs.push_back({"gate.weight", {1, d}, Initial::constant(0)});
  add_linear(specs, "head.input", d, (count + 2) * d, Initial::xavier_uniform((count + 2) * d, d));
  add_linear(specs, "head.output", sizes.outputs, d, Initial::xavier_uniform(d, sizes.outputs));
  return specs;
}

std::vector<LossTerm> miar_batch_terms(const config::Miar& config) {
  if (config.alignment_weight() <= 0) return {};
  return {{"alignment", config.alignment_weight()}};
}

void check_miar(const config::Checker& block) {
  for (const char* const width : {"dim", "heads", "ffn_dim", "alignment_dim"}) block.count(width);
  block.count("layers", config::kDeepest);
  const auto& config = block.experiment().miar();
  block.require(config.dim() % 2 == 0, "dim", "even (positions are pairs of sine and cosine)");
  if (config.heads() > 0 && config.dim() % config.heads() != 0)
    block.fail({"heads", "dim"},
               fmt::format("miar.heads ({}) must divide miar.dim ({})", block.value("heads"), block.value("dim")));
  block.share("dropout");
  block.positive("alignment_temperature");
  block.not_negative("alignment_weight");
}

std::string miar_objection(const std::vector<std::string>& names) {
  if (std::find(names.begin(), names.end(), "joint") == names.end()) return "";
  return "has a modality \"joint\", which is what miar calls its own additional stream: give the modality another name";
}

ModelSpec miar_spec() {
  ModelSpec spec;
  spec.name = "miar";
  spec.title = "MIAR";
  spec.modalities.fewest = 2;
  spec.modalities.objection = miar_objection;
  spec.check = check_miar;
  spec.note = "MIAR here is this project's reading of the paper's abstract, not the authors' code (docs/models.md)";
  spec.build = [](const config::Experiment& experiment, const DataShape& shape) -> std::unique_ptr<Model> {
    return std::make_unique<Miar>(experiment.miar(),
                                  Miar::Sizes{shape.modalities, shape.dims, shape.outputs, shape.task},
                                  decay_of(experiment), dtype_of(experiment), experiment.seed());
  };
  return spec;
}

const RegisteredModel registered_miar(miar_spec());

// Sinusoidal positions of every frame, counted from 0 in each sample: [frames, d] (Vaswani et al. 2017).
at::Tensor positions(const std::vector<int64_t>& offsets, int64_t d, const at::TensorOptions& options) {
  int64_t longest = 0;
  std::vector<int64_t> times;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    longest = std::max(longest, offsets[s + 1] - offsets[s]);
    for (int64_t t = 0; t < offsets[s + 1] - offsets[s]; ++t) times.push_back(t);
  }
  at::Tensor table =
      at::empty({longest, d}, at::TensorOptions().dtype(at::kDouble).pinned_memory(options.device().is_cuda()));
  double* out = table.mutable_data_ptr<double>();
  for (int64_t t = 0; t < longest; ++t)
    for (int64_t i = 0; i < d; i += 2) {
      const double angle = static_cast<double>(t) / std::pow(10000.0, static_cast<double>(i) / static_cast<double>(d));
      *out++ = std::sin(angle);
      *out++ = std::cos(angle);
    }
  return table.to(options, /*non_blocking=*/true).index_select(0, kernels::upload(times, options.device()));
}

}  // namespace

Miar::Miar(const config::Miar& config, const Sizes& sizes, DecayScope decay, at::ScalarType dtype, uint64_t seed)
    : Model(Parameters(miar_specs(config, sizes), decay, dtype, seed), sizes.outputs, {{name_of(sizes.task)}},
            miar_batch_terms(config)),
      config_(config),
      sizes_(sizes),
      streams_(sizes.modalities) {
  streams_.push_back("joint");
}

int64_t Miar::embedding_dim() const {
  return config_.alignment_weight() > 0 ? modality_count() * static_cast<int64_t>(config_.alignment_dim()) : 0;
}

std::vector<std::string> Miar::detail_names() const {
  std::vector<std::string> names;
  for (const auto& stream : streams_) names.push_back("gate_" + stream);
  return names;
}

Embedded Miar::embed(const batch::Batch& batch, const StepContext& step) const {
  const int64_t samples = batch.size();
  const MiarLayout layout(batch.modalities);
  const double p = step.training ? config_.dropout() : 0;

  std::vector<at::Tensor> frames, z;
  for (int64_t m = 0; m < modality_count(); ++m) {
    const auto& ragged = batch.modalities[m];
    const std::string name = "encoder." + sizes_.modalities[m];
    const at::Tensor input = linear(parameters_, name + ".input", ragged.values);
    frames.push_back(layer_norm(parameters_, name + ".norm",
                                input + positions(ragged.offsets, config_.dim(), parameters_.values().options())));
    const at::Tensor tokens = parameters_["token." + sizes_.modalities[m]].unsqueeze(0).expand({samples, -1});
    z.push_back(at::cat({tokens, frames[m]}, 0).index_select(0, layout.streams[m].token_first));
  }
  z.push_back(parameters_["token.joint"].unsqueeze(0).expand({samples, -1}));

  for (uint32_t layer = 0; layer < config_.layers(); ++layer) {
    // Only the tokens of the last layer are ever read, so only they are computed there.
    const bool last = layer + 1 == config_.layers();
    const auto name = [&](size_t k) { return fmt::format("layers.{}.{}", layer, streams_[k]); };
    std::vector<at::Tensor> normed;
    for (size_t k = 0; k < streams_.size(); ++k)
      normed.push_back(layer_norm(parameters_, name(k) + ".attention_norm", z[k]));
    const at::Tensor all = at::cat(normed, 0);
    for (size_t k = 0; k < streams_.size(); ++k) {
      const auto& stream = layout.streams[k];
      const auto& offsets = last ? layout.one_row_each : stream.offsets;
      const at::Tensor query = last ? normed[k].index_select(0, stream.token_rows) : normed[k];
      if (last) z[k] = z[k].index_select(0, stream.token_rows);
      const at::Tensor attended = kernels::attention(
          linear(parameters_, name(k) + ".attention.query", query),
          linear(parameters_, name(k) + ".attention.key_value", all.index_select(0, stream.context_rows)), offsets,
          stream.context_offsets, config_.heads());
      at::Tensor taken = linear(parameters_, name(k) + ".attention.output", attended);
      if (stream.has_context.defined()) {
        // A query without any context takes nothing, not even the output bias.
        const at::Tensor lengths = kernels::upload(offsets, taken.device()).diff();
        taken = taken *
                stream.has_context.repeat_interleave(lengths, 0, offsets.back()).unsqueeze(1).to(taken.scalar_type());
      }
      z[k] = z[k] + kernels::dropout(taken, p, offsets, batch.batch_index, step.dropout(layer_number(layer, k, 0)));
      const at::Tensor hidden =
          at::gelu(linear(parameters_, name(k) + ".ffn.input", layer_norm(parameters_, name(k) + ".ffn_norm", z[k])));
      z[k] = z[k] + kernels::dropout(linear(parameters_, name(k) + ".ffn.output", hidden), p, offsets,
                                     batch.batch_index, step.dropout(layer_number(layer, k, 1)));
    }
  }

  Embedded embedded;
  for (size_t k = 0; k < streams_.size(); ++k)
    embedded.kept.push_back(layer_norm(parameters_, "token_norm." + streams_[k], z[k]));
  if (embedding_dim() == 0) return embedded;
  std::vector<at::Tensor> embeddings;
  for (int64_t m = 0; m < modality_count(); ++m) {
    const std::string name = "alignment." + sizes_.modalities[m];
    const at::Tensor source = config_.alignment_source() == config::Miar::FRAMES
                                  ? kernels::segment_mean(frames[m], batch.modalities[m].offsets)
                                  : embedded.kept[m];
    const at::Tensor projected = linear(parameters_, name + ".projection.output",
                                        at::gelu(linear(parameters_, name + ".projection.input", source)));
    embeddings.push_back(unit_rows(layer_norm(parameters_, name + ".norm", projected)));
  }
  embedded.rows = at::cat(embeddings, 1);
  return embedded;
}

std::vector<at::Tensor> Miar::batch_losses(const at::Tensor& gathered, const GlobalBatch& global,
                                           const losses::Partition& partition) const {
  if (batch_terms().empty()) return {};
  return {losses::alignment_loss(gathered.chunk(modality_count(), 1), global.presence, config_.alignment_temperature(),
                                 partition)};
}

ForwardOutput Miar::forward(const batch::Batch& batch, const Embedded& embedded, const std::vector<batch::Ragged>&,
                            const GlobalBatch& global, const StepContext& step) const {
  const at::Tensor tokens = at::stack(embedded.kept, 1);  // [n, M + 1, d]
  const at::Tensor scores = at::matmul(tokens, parameters_["gate.weight"].squeeze(0)).to(parameters_.dtype());
  const at::Tensor gates = at::softmax(scores, 1);
  const at::Tensor mixed = (gates.unsqueeze(2) * tokens).sum(1);
  std::vector<at::Tensor> features{mixed};
  features.insert(features.end(), embedded.kept.begin(), embedded.kept.end());
  const at::Tensor hidden = at::gelu(linear(parameters_, "head.input", at::cat(features, 1)));
  const at::Tensor dropped =
      kernels::dropout_rows(hidden, step.training ? config_.dropout() : 0, batch.batch_index, step.dropout(kHead));
  ForwardOutput result;
  result.outputs = linear(parameters_, "head.output", dropped).to(parameters_.dtype());
  result.details = gates.detach();
  if (batch.labels.defined()) result.losses.push_back(prediction_loss(result.outputs, batch.labels, global.size()));
  return result;
}

}  // namespace muster::models
