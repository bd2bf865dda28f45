#include "core/kernels/attention.h"

#include <ATen/OpMathType.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "core/kernels/attention_groups.h"
#include "core/kernels/cuda.h"
#include "core/kernels/fused_attention.h"
#include "core/kernels/token_attention.h"
#include "core/kernels/upload.h"

namespace muster::kernels {
namespace {

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key_value, const std::vector<int64_t>& query_offsets,
                            const std::vector<int64_t>& context_offsets, int64_t heads) {
    const at::AutoDispatchBelowADInplaceOrView
        below_autograd;  // whose care for each of the many views costs more than the view
    const int64_t dim = query.size(1);
    const HeadViews heads_of{dim, heads};
    const double scale = 1.0 / std::sqrt(static_cast<double>(dim / heads));
    // Autocast has done its work when it chose the inputs' dtype; in here it would make forward and backward differ.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::ScalarType wide = at::toOpMathType(query.scalar_type());  // softmax of bfloat16 scores runs in float32
    at::Tensor output = at::zeros_like(query, at::MemoryFormat::Contiguous);
    std::vector<at::Tensor> probabilities;
    for (const auto& [first, samples, queries, rows] : attention_groups(query_offsets, context_offsets, heads)) {
      const at::Tensor q = merged_heads(heads_of(query, query_offsets[first], samples, queries, 0));
      const at::Tensor k = merged_heads(heads_of(key_value, context_offsets[first], samples, rows, 0));
      const at::Tensor v = merged_heads(heads_of(key_value, context_offsets[first], samples, rows, dim));
      at::Tensor p = at::_softmax(attention_scores(q, k, scale, wide), -1, false);
      write_heads(heads_of(output, query_offsets[first], samples, queries, 0), at::bmm(p.to(v.scalar_type()), v));
      probabilities.push_back(std::move(p));
    }
    context->save_for_backward({query, key_value});
    context->saved_data["probabilities"] = probabilities;
    context->saved_data["query_offsets"] = query_offsets;
    context->saved_data["context_offsets"] = context_offsets;
    context->saved_data["heads"] = heads;
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor &query = saved[0], &key_value = saved[1];
    const auto probabilities = context->saved_data["probabilities"].toTensorVector();
    const auto query_offsets = context->saved_data["query_offsets"].toIntVector();
    const auto context_offsets = context->saved_data["context_offsets"].toIntVector();
    const int64_t heads = context->saved_data["heads"].toInt();
    const int64_t dim = query.size(1);
    const HeadViews heads_of{dim, heads};
    const double scale = 1.0 / std::sqrt(static_cast<double>(dim / heads));
    const at::Tensor output_gradient = gradients[0].contiguous();
    at::Tensor query_gradient = at::zeros_like(query, at::MemoryFormat::Contiguous);
    at::Tensor key_value_gradient = at::zeros_like(key_value, at::MemoryFormat::Contiguous);
    size_t group = 0;
    for (const auto& [first, samples, queries, rows] : attention_groups(query_offsets, context_offsets, heads)) {
      const int64_t q0 = query_offsets[first], c0 = context_offsets[first];
      const at::Tensor q = merged_heads(heads_of(query, q0, samples, queries, 0));
      const at::Tensor k = merged_heads(heads_of(key_value, c0, samples, rows, 0));
      const at::Tensor v = merged_heads(heads_of(key_value, c0, samples, rows, dim));
      const at::Tensor d_output = merged_heads(heads_of(output_gradient, q0, samples, queries, 0));
      const at::Tensor& p = probabilities[group++];
      write_heads(heads_of(key_value_gradient, c0, samples, rows, dim),
                  at::bmm(p.transpose(1, 2).to(v.scalar_type()), d_output));
      const at::Tensor d_p = at::bmm(d_output, v.transpose(1, 2)).to(p.scalar_type());
      const at::Tensor d_scores =
          at::_softmax_backward_data(d_p, p, -1, p.scalar_type()).mul_(scale).to(query.scalar_type());
      write_heads(heads_of(query_gradient, q0, samples, queries, 0), at::bmm(d_scores, k));
      write_heads(heads_of(key_value_gradient, c0, samples, rows, 0), at::bmm(d_scores.transpose(1, 2), q));
    }
    return {query_gradient, key_value_gradient, {}, {}, {}};
  }
};

struct SegmentMeanFunction : torch::autograd::Function<SegmentMeanFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& values,
                            const std::vector<int64_t>& offsets) {
    context->saved_data["offsets"] = offsets;
    if (values.is_cuda()) return segment_mean_cuda(values.contiguous(), offsets);
    const int64_t samples = static_cast<int64_t>(offsets.size()) - 1;
    at::Tensor means = at::zeros({samples, values.size(1)}, values.options());
    for (int64_t s = 0; s < samples; ++s)
      if (offsets[s + 1] > offsets[s])
        means[s].copy_(values.narrow(0, offsets[s], offsets[s + 1] - offsets[s]).mean(0));
    return means;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto offsets = context->saved_data["offsets"].toIntVector();
    const at::Tensor lengths = upload(offsets, gradients[0].device()).diff();
    const at::Tensor shares = gradients[0] / lengths.clamp_min(1).unsqueeze(1).to(gradients[0].scalar_type());
    return {shares.repeat_interleave(lengths, 0, offsets.back()), {}};
  }
};

}  // namespace

at::Tensor attention(const at::Tensor& query, const at::Tensor& key_value, const std::vector<int64_t>& query_offsets,
                     const std::vector<int64_t>& context_offsets, int64_t heads) {
  TORCH_CHECK(query_offsets.back() == query.size(0) && context_offsets.back() == key_value.size(0),
              "attention: the offsets do not end with the rows");
  TORCH_CHECK(query.size(1) % heads == 0 && key_value.size(1) == 2 * query.size(1), "attention: ", heads, " heads of ",
              query.size(1), " columns, beside ", key_value.size(1));
  if (can_fuse_attention(query, query_offsets, context_offsets, heads))
    return fused_attention(query, key_value, query_offsets, context_offsets, heads);
  if (is_token_attention(query, query_offsets)) return token_attention(query, key_value, context_offsets, heads);
  return AttentionFunction::apply(query, key_value, query_offsets, context_offsets, heads);
}

at::Tensor segment_mean(const at::Tensor& values, const std::vector<int64_t>& offsets) {
  return SegmentMeanFunction::apply(values, offsets);
}

}  // namespace muster::kernels
