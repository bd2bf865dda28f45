#include "core/kernels/linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <iterator>

namespace muster::kernels {
namespace {

using OneDnnProduct = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                 std::string_view, c10::List<std::optional<at::Scalar>>,
                                 std::optional<std::string_view>);

// Torch's operator for y = x W^T by oneDNN; nothing where Torch is built without.
const std::optional<c10::TypedOperatorHandle<OneDnnProduct>>& one_dnn() {
  static const auto product = []() -> std::optional<c10::TypedOperatorHandle<OneDnnProduct>> {
    const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (!found || !found->hasKernelForDispatchKey(c10::DispatchKey::CPU)) return std::nullopt;
    return found->typed<OneDnnProduct>();
  }();
  return product;
}

at::Tensor one_dnn_product(const at::Tensor& x, const at::Tensor& weight) {
  return one_dnn()->call(x, weight, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
}

// oneDNN compiles a product for each number of rows that it meets, for milliseconds, and ragged batches rarely have the
// same number twice: so the rows are parted into blocks of a few sizes, and MKL gets what is left over.
constexpr int64_t kBlocks[] = {512, 256, 128};
constexpr int64_t kLeastWork =
    2'000'000;  // multiplications; in smaller products oneDNN's start takes what its code saves

// Calls block(begin, rows, is_large) for consecutive rows.
template <class Block>
void for_blocks(int64_t rows, int64_t work_per_row, const Block& block) {
  int64_t begin = 0;
  for (const int64_t size : kBlocks)
    for (; size * work_per_row >= kLeastWork && rows - begin >= size; begin += size) block(begin, size, true);
  if (begin < rows) block(begin, rows - begin, false);
}

// x [rows, in], weight [out, in] -> [rows, out].
at::Tensor blocked_product(const at::Tensor& x, const at::Tensor& weight) {
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  for_blocks(x.size(0), weight.numel(), [&](int64_t begin, int64_t rows, bool large) {
    at::Tensor part = y.narrow(0, begin, rows);
    if (large)
      part.copy_(one_dnn_product(x.narrow(0, begin, rows), weight));
    else
      at::mm_out(part, x.narrow(0, begin, rows), weight.t());
  });
  return y;
}

// a [rows, m], b [rows, n] -> a^T b [m, n].
at::Tensor blocked_product_over_rows(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor sum;
  for_blocks(a.size(0), a.size(1) * b.size(1), [&](int64_t begin, int64_t rows, bool large) {
    const at::Tensor left = a.narrow(0, begin, rows), right = b.narrow(0, begin, rows);
    if (!large) {
      sum = sum.defined() ? sum.addmm_(left.t(), right) : at::mm(left.t(), right);
      return;
    }
    // It copies its first factor to transpose it: the smaller one. So the sum may be a transposed view.
    const at::Tensor part =
        left.size(1) <= right.size(1) ? one_dnn_product(left.t(), right.t()) : one_dnn_product(right.t(), left.t()).t();
    sum = sum.defined() ? sum.add_(part) : part;
  });
  return sum;
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, weight});
    context->saved_data["has_bias"] = bias.has_value();
    at::Tensor y = blocked_product(x, weight);
    return bias ? y.add_(*bias) : y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "kernels::linear has no second derivatives");
    const auto saved = context->get_saved_variables();
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor &x = saved[0], &weight = saved[1], gradient = gradients[0].contiguous();
    return {context->needs_input_grad(0) ? blocked_product(gradient, weight.t()) : at::Tensor(),
            context->needs_input_grad(1) ? blocked_product_over_rows(gradient, x) : at::Tensor(),
            context->saved_data["has_bias"].toBool() && context->needs_input_grad(2) ? gradient.sum(0) : at::Tensor()};
  }
};

// For a matrix with gaps between its rows oneDNN has only its reference code, which takes a hundred times as long.
at::Tensor dense_matrix(const at::Tensor& x) { return x.is_non_overlapping_and_dense() ? x : x.contiguous(); }

// rows: those that blocks are made of.
bool gains_from_one_dnn(const at::Tensor& a, const at::Tensor& b, int64_t rows, int64_t multiplications) {
  return a.is_cpu() && a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat &&
         rows >= *std::rbegin(kBlocks) && multiplications >= kLeastWork &&
         !at::autocast::is_autocast_enabled(at::kCPU) && !at::globalContext().deterministicAlgorithms() && one_dnn();
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const bool gains = x.dim() == 2 && gains_from_one_dnn(x, weight, x.size(0), x.size(0) * weight.numel());
  return gains ? LinearFunction::apply(x, weight, bias) : at::linear(x, weight, bias);
}

at::Tensor product_of_rows(const at::Tensor& x, const at::Tensor& weight) {
  const bool gains = gains_from_one_dnn(x, weight, x.size(0), x.size(0) * weight.numel());
  return gains ? blocked_product(x, dense_matrix(weight)) : at::mm(x, weight.t());
}

at::Tensor product_over_rows(const at::Tensor& a, const at::Tensor& b) {
  const bool gains = gains_from_one_dnn(a, b, a.size(0), a.numel() * b.size(1));
  return gains ? blocked_product_over_rows(dense_matrix(a), dense_matrix(b)) : at::mm(a.t(), b);
}

}  // namespace muster::kernels
