#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/models/parameters.h"
#include "core/models/step_context.h"

// The transformer layer that speech and text encoders share (Vaswani et al., 2017), over ragged batches: a sample
// attends to itself only, and nothing is padded.
namespace muster::models {

enum class Activation { kGelu, kGeluTanh, kRelu, kSilu };

// By the names of transformers' ACT2FN ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu" ...). Throws
// Error(kBadData) that names `field` of `file` for another one.
Activation activation_named(const std::string& name, const std::string& field, const std::string& file);
at::Tensor activate(Activation activation, const at::Tensor& x);

// Complete names of the parts of one layer; each has .weight and .bias.
struct TransformerLayerNames {
  std::string query, key, value, attention_output, attention_norm;
  std::string intermediate, output, output_norm;
};

struct TransformerOptions {
  int64_t heads = 1;
  // Where the norms stand. false (post-norm: BERT, wav2vec2-base): x = norm(x + part(x)). true (pre-norm; "stable layer
  // norm" of the large speech models): x = x + part(norm(x)).
  bool norm_first = false;
  double norm_epsilon = 1e-5;
  Activation activation = Activation::kGelu;
  double attention_dropout = 0;   // on the attention weights
  double hidden_dropout = 0;      // on what attention and feed-forward network give
  double activation_dropout = 0;  // behind the activation
};

// Which rows are whose.
struct SampleRows {
  const std::vector<int64_t>& offsets;      // samples + 1
  const std::vector<int64_t>& batch_index;  // samples
};

// WavLM's gated relative position bias (Chen et al., 2022, section 3.1): what is added to the attention score of query
// t and key s of a sample in head h is gate(x_t, h) * table[bucket(s - t), h].
struct RelativePositionBias {
  // [2 * n - 1, heads], row n - 1 + (s - t), of n rows in the longest sample: one per distance, differentiable.
  at::Tensor table;
  std::string gate;  // name prefix of this layer's gru_rel_pos_const and gru_rel_pos_linear
};

// Dropout layers that one transformer layer uses: [first, first + 4).
constexpr uint32_t kDropoutLayersPerTransformerLayer = 4;

// x [rows, dim] -> [rows, dim]. bias: nullptr for none.
at::Tensor transformer_layer(const Parameters& parameters, const TransformerLayerNames& names,
                             const TransformerOptions& options, const at::Tensor& x, const SampleRows& rows,
                             const StepContext& step, uint32_t first_dropout_layer,
                             const RelativePositionBias* bias = nullptr);

}  // namespace muster::models
