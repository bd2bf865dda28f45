#include "core/models/encoders/transformer.h"

#include <fmt/format.h>

#include "base/error.h"
#include "core/kernels/attention.h"
#include "core/kernels/biased_attention.h"
#include "core/kernels/linear.h"
#include "core/models/layers.h"

namespace muster::models {
namespace {

// Gate of each row and head [rows, heads]: x's part of that head goes through a linear map to 2 x 4 numbers, whose sums
// over 4 are a and b; the gate is sigmoid(a) (sigmoid(b) c - 1) + 2.
at::Tensor position_gate(const Parameters& parameters, const std::string& name, const at::Tensor& x, int64_t heads) {
  const int64_t rows = x.size(0), width = x.size(1) / heads;
  // Summed before the product: a quarter of the work.
  const at::Tensor weight = parameters[name + "gru_rel_pos_linear.weight"].view({2, 4, width}).sum(1);
  const at::Tensor bias = parameters[name + "gru_rel_pos_linear.bias"].view({2, 4}).sum(1);
  const at::Tensor sums = at::linear(x.reshape({rows * heads, width}), weight, bias).to(parameters.dtype());
  const at::Tensor shares = sums.sigmoid().view({rows, heads, 2});
  const at::Tensor constant = parameters[name + "gru_rel_pos_const"].view({1, heads});
  return shares.select(2, 0) * (shares.select(2, 1) * constant - 1.0) + 2.0;
}

at::Tensor self_attention(const Parameters& parameters, const TransformerLayerNames& names,
                          const TransformerOptions& options, const at::Tensor& x, const SampleRows& rows,
                          const StepContext& step, uint32_t dropout_layer, const RelativePositionBias* bias) {
  const at::Tensor query = linear(parameters, names.query, x);
  // One product for both: the copy of the weights costs less than a copy of keys and values, and a second product.
  const at::Tensor key_value =
      kernels::linear(x, at::cat({parameters[names.key + ".weight"], parameters[names.value + ".weight"]}),
                      at::cat({parameters[names.key + ".bias"], parameters[names.value + ".bias"]}));
  const double dropout = step.training ? options.attention_dropout : 0;
  at::Tensor seen;
  if (bias != nullptr || dropout > 0) {
    std::optional<kernels::AttentionBias> added;
    if (bias != nullptr)
      added = kernels::AttentionBias{position_gate(parameters, bias->gate, x, options.heads), bias->table};
    seen = kernels::biased_attention(query, key_value, rows.offsets, options.heads, added, dropout, rows.batch_index,
                                     step.dropout(dropout_layer));
  } else {
    seen = kernels::attention(query, key_value, rows.offsets, rows.offsets, options.heads);
  }
  return linear(parameters, names.attention_output, seen);
}

}  // namespace

Activation activation_named(const std::string& name, const std::string& field, const std::string& file) {
  if (name == "gelu" || name == "gelu_python") return Activation::kGelu;
  for (const char* const tanh : {"gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"})
    if (name == tanh) return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  if (name == "silu" || name == "swish") return Activation::kSilu;
  throw Error(ExitCode::kBadData,
              fmt::format("{}: {}: the activation '{}' is not supported; gelu, gelu_new, gelu_pytorch_tanh, relu and "
                          "silu are",
                          file, field, name));
}

at::Tensor activate(Activation activation, const at::Tensor& x) {
  switch (activation) {
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kSilu:
      return at::silu(x);
  }
  throw Error(ExitCode::kInternal, "activate: an activation without a function");
}

at::Tensor transformer_layer(const Parameters& parameters, const TransformerLayerNames& names,
                             const TransformerOptions& options, const at::Tensor& x, const SampleRows& rows,
                             const StepContext& step, uint32_t first_dropout_layer, const RelativePositionBias* bias) {
  const auto dropped = [&](const at::Tensor& value, double p, uint32_t layer) {
    if (!step.training) return value;
    return kernels::dropout(value, p, rows.offsets, rows.batch_index, step.dropout(first_dropout_layer + layer));
  };
  const auto norm = [&](const std::string& name, const at::Tensor& value) {
    return layer_norm(parameters, name, value, options.norm_epsilon);
  };
  const auto attended = [&](const at::Tensor& value) {
    return dropped(self_attention(parameters, names, options, value, rows, step, first_dropout_layer, bias),
                   options.hidden_dropout, 1);
  };
  const auto fed_forward = [&](const at::Tensor& value) {
    const at::Tensor wide = activate(options.activation, linear(parameters, names.intermediate, value));
    return dropped(linear(parameters, names.output, dropped(wide, options.activation_dropout, 2)),
                   options.hidden_dropout, 3);
  };
  if (options.norm_first) {
    const at::Tensor y = x + attended(norm(names.attention_norm, x));
    return y + fed_forward(norm(names.output_norm, y));
  }
  const at::Tensor y = norm(names.attention_norm, x + attended(x));
  return norm(names.output_norm, y + fed_forward(y));
}

}  // namespace muster::models
