#include "core/kernels/attention.h"

#include <ATen/OpMathType.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "core/kernels/cuda.h"
#include "core/kernels/fused_attention.h"
#include "core/kernels/upload.h"

// Why not a slice per sample under autograd: each slice's backward writes a zero tensor of the full size, so a batch would cost
// its square. Inside one node the per-sample views are free.
namespace muster::kernels {
namespace {

// Rows [begin, end) and columns [column, column + dim) as [heads, rows, dim/heads], a strided view.
at::Tensor heads_view(const at::Tensor& table, int64_t begin, int64_t end, int64_t column, int64_t dim, int64_t heads) {
  return table.narrow(0, begin, end - begin).narrow(1, column, dim).unflatten(1, {heads, dim / heads}).transpose(0, 1);
}

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& query, const at::Tensor& key_value,
                            const std::vector<int64_t>& query_offsets, const std::vector<int64_t>& context_offsets,
                            int64_t heads) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;  // whose care for each of the many views costs more than the view
    const int64_t dim = query.size(1);
    const double scale = 1.0 / std::sqrt(static_cast<double>(dim / heads));
    // Autocast has done its work when it chose the inputs' dtype; in here it would make forward and backward differ.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::ScalarType wide = at::toOpMathType(query.scalar_type());  // softmax of bfloat16 scores runs in float32
    at::Tensor output = at::zeros_like(query, at::MemoryFormat::Contiguous);
    std::vector<at::Tensor> probabilities;
    for (size_t sample = 0; sample + 1 < query_offsets.size(); ++sample) {
      const int64_t q0 = query_offsets[sample], q1 = query_offsets[sample + 1];
      const int64_t c0 = context_offsets[sample], c1 = context_offsets[sample + 1];
      if (q0 == q1 || c0 == c1) {
        probabilities.emplace_back(at::empty({0}, query.options()));
        continue;
      }
      const at::Tensor q = heads_view(query, q0, q1, 0, dim, heads);
      const at::Tensor k = heads_view(key_value, c0, c1, 0, dim, heads);
      const at::Tensor v = heads_view(key_value, c0, c1, dim, dim, heads);
      at::Tensor p = at::softmax(at::bmm(q, k.transpose(1, 2)).to(wide).mul_(scale), -1);
      heads_view(output, q0, q1, 0, dim, heads).copy_(at::bmm(p.to(v.scalar_type()), v));
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
    const double scale = 1.0 / std::sqrt(static_cast<double>(dim / heads));
    const at::Tensor output_gradient = gradients[0].contiguous();
    at::Tensor query_gradient = at::zeros_like(query, at::MemoryFormat::Contiguous);
    at::Tensor key_value_gradient = at::zeros_like(key_value, at::MemoryFormat::Contiguous);
    for (size_t sample = 0; sample + 1 < query_offsets.size(); ++sample) {
      const int64_t q0 = query_offsets[sample], q1 = query_offsets[sample + 1];
      const int64_t c0 = context_offsets[sample], c1 = context_offsets[sample + 1];
      if (q0 == q1 || c0 == c1) continue;
      const at::Tensor q = heads_view(query, q0, q1, 0, dim, heads);
      const at::Tensor k = heads_view(key_value, c0, c1, 0, dim, heads);
      const at::Tensor v = heads_view(key_value, c0, c1, dim, dim, heads);
      const at::Tensor& p = probabilities[sample];
      const at::Tensor d_output = heads_view(output_gradient, q0, q1, 0, dim, heads);
      heads_view(key_value_gradient, c0, c1, dim, dim, heads).copy_(
          at::bmm(p.transpose(1, 2).to(v.scalar_type()), d_output));
      const at::Tensor d_p = at::bmm(d_output, v.transpose(1, 2)).to(p.scalar_type());
      const at::Tensor d_scores =
          at::_softmax_backward_data(d_p, p, -1, p.scalar_type()).mul_(scale).to(query.scalar_type());
      heads_view(query_gradient, q0, q1, 0, dim, heads).copy_(at::bmm(d_scores, k));
      heads_view(key_value_gradient, c0, c1, 0, dim, heads).copy_(at::bmm(d_scores.transpose(1, 2), q));
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
  if (can_fuse_attention(query, query_offsets, context_offsets, heads))
    return fused_attention(query, key_value, query_offsets, context_offsets, heads);
  return AttentionFunction::apply(query, key_value, query_offsets, context_offsets, heads);
}

at::Tensor segment_mean(const at::Tensor& values, const std::vector<int64_t>& offsets) {
  return SegmentMeanFunction::apply(values, offsets);
}

}  // namespace muster::kernels
