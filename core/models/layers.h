#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "core/models/parameters.h"

// Layers as functions of (parameters, dotted name, input): a model's state is its Parameters and nothing else.
namespace muster::models {

// y = x W^T + b with <name>.weight [out, in] and, if the model has it, <name>.bias [out].
at::Tensor linear(const Parameters& parameters, const std::string& name, const at::Tensor& x, bool bias = true);

// Over the last dimension; biased variance; <name>.weight and .bias. Runs in the parameters' dtype (autocast would
// leave it in bfloat16).
at::Tensor layer_norm(const Parameters& parameters, const std::string& name, const at::Tensor& x,
                      double epsilon = 1e-5);

// Rows scaled to Euclidean length 1, without an epsilon. A row of zeros stays one: features that are all zero have no
// direction, and must not make the whole batch's loss NaN.
at::Tensor unit_rows(const at::Tensor& x);

// The loss of predictions: outputs [n, 1] against values (mean absolute error), class logits [n, classes] against int64
// classes (cross entropy), or against 0s and 1s [n, classes] of multi-label data (binary cross entropy, its mean over
// classes); the sum over these rows, divided by the number of rows of the global batch. The term is called
// name_of(task).
at::Tensor prediction_loss(const at::Tensor& outputs, const at::Tensor& labels, int64_t global_rows);

// Specs of the layers above.
void add_linear(std::vector<ParameterSpec>& specs, const std::string& name, int64_t out, int64_t in,
                const Initial& weight, bool bias = true);
// key_value: [2 * dim, context_dim], rows [0, dim) keys; the key half of its bias has no gradient.
void add_key_value(std::vector<ParameterSpec>& specs, const std::string& name, int64_t dim, int64_t context_dim,
                   const Initial& weight);
void add_layer_norm(std::vector<ParameterSpec>& specs, const std::string& name, int64_t dim);

}  // namespace muster::models
