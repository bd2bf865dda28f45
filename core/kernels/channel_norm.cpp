#include "core/kernels/channel_norm.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

namespace muster::kernels {
namespace {

std::vector<RowSpan> spans_of(const std::vector<int64_t>& numbers) {
  std::vector<RowSpan> spans(numbers.size() / 2);
  for (size_t i = 0; i < spans.size(); ++i) spans[i] = {numbers[2 * i], numbers[2 * i + 1]};
  return spans;
}

// A norm over the rows of a table is PyTorch's batch norm of that table.
struct ChannelNormFunction : torch::autograd::Function<ChannelNormFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, const std::vector<int64_t>& spans, double epsilon) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    at::Tensor y = at::zeros_like(x);
    std::vector<at::Tensor> means, inverses;
    for (const auto& [begin, count] : spans_of(spans)) {
      const auto [part, mean, inverse] =
          at::native_batch_norm(x.narrow(0, begin, count), weight, bias, {}, {}, true, 0, epsilon);
      y.narrow(0, begin, count).copy_(part);
      means.push_back(mean);
      inverses.push_back(inverse);
    }
    context->save_for_backward({x, weight});
    context->saved_data["means"] = means;
    context->saved_data["inverses"] = inverses;
    context->saved_data["spans"] = spans;
    context->saved_data["epsilon"] = epsilon;
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor &x = saved[0], &weight = saved[1], gradient = gradients[0].contiguous();
    const auto& data = context->saved_data;
    const auto means = data.at("means").toTensorVector(), inverses = data.at("inverses").toTensorVector();
    const bool needs_x = context->needs_input_grad(0);
    at::Tensor x_gradient = needs_x ? at::zeros_like(x) : at::Tensor();
    at::Tensor weight_gradient = at::zeros_like(weight), bias_gradient = at::zeros_like(weight);
    size_t next = 0;
    for (const auto& [begin, count] : spans_of(data.at("spans").toIntVector())) {
      const auto [of_x, of_weight, of_bias] = at::native_batch_norm_backward(
          gradient.narrow(0, begin, count), x.narrow(0, begin, count), weight, {}, {}, means[next], inverses[next],
          true, data.at("epsilon").toDouble(), {needs_x, true, true});
      if (needs_x) x_gradient.narrow(0, begin, count).copy_(of_x);
      weight_gradient.add_(of_weight);
      bias_gradient.add_(of_bias);
      ++next;
    }
    return {x_gradient, weight_gradient, bias_gradient, {}, {}};
  }
};

}  // namespace

at::Tensor channel_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                        const std::vector<RowSpan>& spans, double epsilon) {
  std::vector<int64_t> numbers;
  for (const auto& [begin, count] : spans) {
    TORCH_CHECK(count > 0 && begin >= 0 && begin + count <= x.size(0), "channel_norm: rows ", begin, " + ", count,
                " of ", x.size(0));
    numbers.insert(numbers.end(), {begin, count});
  }
  return ChannelNormFunction::apply(x.contiguous(), weight, bias, numbers, epsilon);
}

}  // namespace muster::kernels
