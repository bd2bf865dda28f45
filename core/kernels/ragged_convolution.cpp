#include "core/kernels/ragged_convolution.h"

#include <ATen/OpMathType.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "core/kernels/autocast.h"
#include "core/kernels/linear.h"

namespace muster::kernels {
namespace {

// Where a convolution reads: `taps` rows of `in` channels from row t * stride.
struct Windows {
  int64_t rows, in, taps, stride;

  int64_t count() const { return rows < taps ? 0 : (rows - taps) / stride + 1; }
  // Taps are taken `stride` at a time: so many rows of x are one row of a matrix that is a view of x, and all windows
  // are multiplied at once without copying any.
  int64_t parts() const { return (taps + stride - 1) / stride; }
  int64_t first_tap(int64_t part) const { return part * stride; }
  int64_t taps_of(int64_t part) const { return std::min(stride, taps - first_tap(part)); }
  // [count, taps_of(part) * in]
  at::Tensor part_of(const at::Tensor& x, int64_t part) const {
    return x.as_strided({count(), taps_of(part) * in}, {stride * in, 1}, x.storage_offset() + first_tap(part) * in);
  }
  // Narrow windows are copied: a product over so few columns takes longer than the copy. So are those of bfloat16,
  // whose sum of several products and a bias would be rounded each time.
  bool at_once(const at::Tensor& x) const { return taps * in <= 64 || x.scalar_type() == at::kBFloat16; }
  at::Tensor all_of(const at::Tensor& x) const {
    return x.as_strided({count(), taps * in}, {stride * in, 1}, x.storage_offset()).contiguous();
  }
  // Columns of a weight [out, taps * in].
  at::Tensor columns(const at::Tensor& weight, int64_t part) const {
    return weight.narrow(1, first_tap(part) * in, taps_of(part) * in);
  }
};

struct ConvolutionFunction : torch::autograd::Function<ConvolutionFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, int64_t stride) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    context->save_for_backward({x, weight});
    context->saved_data["stride"] = stride;
    context->saved_data["has_bias"] = bias.has_value();
    const Windows windows{x.size(0), x.size(1), weight.size(2), stride};
    const at::Tensor by_tap = weight.permute({0, 2, 1}).reshape({weight.size(0), -1});
    at::Tensor y;
    if (windows.count() == 0) return at::empty({0, weight.size(0)}, x.options());
    if (windows.at_once(x)) {
      if (bias && x.scalar_type() == at::kBFloat16) return at::addmm(*bias, windows.all_of(x), by_tap.t());
      y = product_of_rows(windows.all_of(x), by_tap);
    } else {
      y = product_of_rows(windows.part_of(x, 0), windows.columns(by_tap, 0));
      for (int64_t part = 1; part < windows.parts(); ++part)
        y.add_(product_of_rows(windows.part_of(x, part), windows.columns(by_tap, part)));
    }
    return bias ? y.add_(*bias) : y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor &x = saved[0], &weight = saved[1], gradient = gradients[0].contiguous();
    const Windows windows{x.size(0), x.size(1), weight.size(2), context->saved_data["stride"].toInt()};
    const bool any = windows.count() > 0;
    at::Tensor x_gradient, weight_gradient, bias_gradient;
    if (context->needs_input_grad(0)) {
      const at::Tensor by_tap = weight.permute({0, 2, 1}).reshape({weight.size(0), -1});
      x_gradient = at::zeros_like(x, at::toOpMathType(x.scalar_type()));
      for (int64_t part = 0; any && part < windows.parts(); ++part)
        windows.part_of(x_gradient, part).add_(product_of_rows(gradient, windows.columns(by_tap, part).t()));
      x_gradient = x_gradient.to(x.scalar_type());
    }
    if (context->needs_input_grad(1)) {
      at::Tensor by_tap = at::zeros({weight.size(0), windows.taps * windows.in}, weight.options());
      if (any && windows.at_once(x)) by_tap.copy_(product_over_rows(gradient, windows.all_of(x)));
      for (int64_t part = 0; any && !windows.at_once(x) && part < windows.parts(); ++part)
        windows.columns(by_tap, part).copy_(product_over_rows(gradient, windows.part_of(x, part)));
      weight_gradient = by_tap.view({weight.size(0), windows.taps, windows.in}).permute({0, 2, 1}).contiguous();
    }
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(2)) bias_gradient = gradient.sum(0);
    return {x_gradient, weight_gradient, bias_gradient, {}};
  }
};

// One convolution over each sample and group of rows [rows, groups * in]: `left` zeros before a sample's first row.
struct GroupedRows {
  const std::vector<int64_t>& offsets;
  int64_t groups, taps, left;

  // Calls block(first_row, rows, first_group, count, windows [count, rows, taps * in]) for all windows. On a CPU they
  // are few enough to stay in a core's cache between copy and product.
  template <class Block>
  void for_windows(const at::Tensor& x, const Block& block) const {
    const int64_t in = x.size(1) / groups, most_rows = x.is_cpu() ? 256 : 1024, at_once = x.is_cpu() ? 1 : groups;
    for (size_t sample = 0; sample + 1 < offsets.size(); ++sample) {
      const int64_t begin = offsets[sample], rows = offsets[sample + 1] - begin, padded_rows = rows + taps - 1;
      if (rows == 0) continue;
      at::Tensor padded = at::zeros({groups, padded_rows, in}, x.options());
      padded.narrow(1, left, rows).copy_(x.narrow(0, begin, rows).view({rows, groups, in}).transpose(0, 1));
      for (int64_t row = 0; row < rows; row += most_rows) {
        const int64_t count = std::min(most_rows, rows - row);
        for (int64_t group = 0; group < groups; group += at_once)
          block(
              begin + row, count, group, at_once,
              padded
                  .as_strided({at_once, count, taps * in}, {padded_rows * in, in, 1}, (group * padded_rows + row) * in)
                  .contiguous());
      }
    }
  }

  // weight [groups, out, taps * in] -> [rows, groups * out].
  at::Tensor convolved(const at::Tensor& x, const at::Tensor& weight) const {
    const int64_t out = weight.size(1);
    at::Tensor y = at::empty({x.size(0), groups * out}, x.options());
    for_windows(x, [&](int64_t begin, int64_t rows, int64_t group, int64_t count, const at::Tensor& windows) {
      at::Tensor part = y.narrow(0, begin, rows).narrow(1, group * out, count * out);
      if (count == 1)
        part.copy_(product_of_rows(windows[0], weight[group]));
      else
        part.view({rows, count, out})
            .copy_(at::bmm(windows, weight.narrow(0, group, count).transpose(1, 2)).transpose(0, 1));
    });
    return y;
  }

  // The gradient of such a weight.
  at::Tensor weight_gradient(const at::Tensor& x, const at::Tensor& gradient) const {
    const int64_t in = x.size(1) / groups, out = gradient.size(1) / groups;
    at::Tensor sum = at::zeros({groups, out, taps * in}, x.options());
    for_windows(x, [&](int64_t begin, int64_t rows, int64_t group, int64_t count, const at::Tensor& windows) {
      const at::Tensor part = gradient.narrow(0, begin, rows).narrow(1, group * out, count * out);
      if (count == 1)
        sum[group].add_(product_over_rows(windows[0], part).t());
      else
        sum.narrow(0, group, count).baddbmm_(part.view({rows, count, out}).permute({1, 2, 0}), windows);
    });
    return sum;
  }
};

struct SameConvolutionFunction : torch::autograd::Function<SameConvolutionFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::vector<int64_t>& offsets, int64_t groups) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    context->save_for_backward({x, weight});
    context->saved_data["offsets"] = offsets;
    context->saved_data["groups"] = groups;
    const int64_t taps = weight.size(2), in = weight.size(1);
    const at::Tensor by_group = weight.view({groups, -1, in, taps}).transpose(2, 3).reshape({groups, -1, taps * in});
    return GroupedRows{offsets, groups, taps, taps / 2}.convolved(x, by_group);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor &x = saved[0], &weight = saved[1], gradient = gradients[0].contiguous();
    const auto offsets = context->saved_data["offsets"].toIntVector();
    const int64_t groups = context->saved_data["groups"].toInt(), taps = weight.size(2), in = weight.size(1);
    at::Tensor x_gradient, weight_gradient;
    if (context->needs_input_grad(0)) {
      // The same convolution of the gradient with the taps in reverse order, outputs and inputs exchanged.
      const at::Tensor reverse =
          weight.view({groups, -1, in, taps}).permute({0, 2, 3, 1}).flip(2).reshape({groups, in, -1});
      x_gradient = GroupedRows{offsets, groups, taps, taps - 1 - taps / 2}.convolved(gradient, reverse);
    }
    if (context->needs_input_grad(1)) {
      const at::Tensor by_group = GroupedRows{offsets, groups, taps, taps / 2}.weight_gradient(x, gradient);
      weight_gradient = by_group.view({groups, -1, taps, in}).transpose(2, 3).reshape(weight.sizes());
    }
    return {x_gradient, weight_gradient, {}, {}};
  }
};

}  // namespace

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       int64_t stride) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 3 && x.size(1) == weight.size(1) && stride > 0,
              "convolution: ", x.sizes(), " by ", weight.sizes(), ", stride ", stride);
  std::optional<at::Tensor> cast_bias;
  if (bias) cast_bias = autocast_for_products(*bias);
  return ConvolutionFunction::apply(autocast_for_products(x).contiguous(), autocast_for_products(weight), cast_bias,
                                    stride);
}

at::Tensor same_convolution(const at::Tensor& x, const at::Tensor& weight, const std::vector<int64_t>& offsets,
                            int64_t groups) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 3 && offsets.back() == x.size(0) && weight.size(0) == x.size(1) &&
                  weight.size(1) * groups == x.size(1),
              "same_convolution: ", x.sizes(), " by ", weight.sizes(), " in ", groups, " groups");
  return SameConvolutionFunction::apply(autocast_for_products(x).contiguous(),
                                        autocast_for_products(weight).contiguous(), offsets, groups);
}

}  // namespace muster::kernels
