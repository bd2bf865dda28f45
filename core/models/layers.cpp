#include "core/models/layers.h"

#include "core/kernels/linear.h"

namespace muster::models {

at::Tensor linear(const Parameters& parameters, const std::string& name, const at::Tensor& x, bool bias) {
  return kernels::linear(x, parameters[name + ".weight"],
                         bias ? std::optional<at::Tensor>(parameters[name + ".bias"]) : std::nullopt);
}

at::Tensor layer_norm(const Parameters& parameters, const std::string& name, const at::Tensor& x, double epsilon) {
  return at::layer_norm(x.to(parameters.dtype()), {x.size(-1)}, parameters[name + ".weight"],
                        parameters[name + ".bias"], epsilon);
}

at::Tensor unit_rows(const at::Tensor& x) {
  const at::Tensor length = x.norm(2, {1}, true);
  return x / length.where(length > 0, at::ones_like(length));
}

at::Tensor prediction_loss(const at::Tensor& outputs, const at::Tensor& labels, int64_t global_rows) {
  const double n = static_cast<double>(global_rows);
  if (labels.dim() == 2)
    return at::binary_cross_entropy_with_logits(outputs, labels, {}, {}, at::Reduction::Sum) /
           (n * static_cast<double>(labels.size(1)));
  if (labels.is_floating_point()) return (outputs.squeeze(1) - labels).abs().sum() / n;
  return at::cross_entropy_loss(outputs, labels, {}, at::Reduction::Sum) / n;
}

void add_linear(std::vector<ParameterSpec>& specs, const std::string& name, int64_t out, int64_t in,
                const Initial& weight, bool bias) {
  specs.push_back({name + ".weight", {out, in}, weight});
  if (bias) specs.push_back({name + ".bias", {out}, Initial::constant(0)});
}

void add_key_value(std::vector<ParameterSpec>& specs, const std::string& name, int64_t dim, int64_t context_dim,
                   const Initial& weight) {
  specs.push_back({name + ".weight", {2 * dim, context_dim}, weight});
  specs.push_back({name + ".bias", {2 * dim}, Initial::constant(0), dim});
}

void add_layer_norm(std::vector<ParameterSpec>& specs, const std::string& name, int64_t dim) {
  specs.push_back({name + ".weight", {dim}, Initial::constant(1)});
  specs.push_back({name + ".bias", {dim}, Initial::constant(0)});
}

}  // namespace muster::models
