#include "core/kernels/fused_attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/kernels/attention_groups.h"
#include "core/kernels/upload.h"

namespace muster::kernels {
namespace {

constexpr int64_t kNoMask = 0;  // of PyTorch's sdp::CustomMaskType

bool has_empty(const std::vector<int64_t>& offsets) {
  return std::adjacent_find(offsets.begin(), offsets.end()) != offsets.end();
}

// Columns [column, column + dim) as [1, rows, heads, dim/heads], a strided view.
at::Tensor heads_view(const at::Tensor& table, int64_t column, int64_t dim, int64_t heads) {
  return table.narrow(1, column, dim).unflatten(1, {heads, dim / heads}).unsqueeze(0);
}

struct FusedAttentionFunction : torch::autograd::Function<FusedAttentionFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& query_rows,
                            const at::Tensor& key_value_rows, const std::vector<int64_t>& query_offsets,
                            const std::vector<int64_t>& context_offsets, int64_t heads) {
    // As in attention.cpp: autocast has chosen the inputs' dtype already.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::Tensor query = query_rows.contiguous(), key_value = key_value_rows.contiguous();
    const int64_t dim = query.size(1);
    const at::Tensor query_starts = upload<int32_t>(query_offsets, query.device());
    const at::Tensor context_starts = upload<int32_t>(context_offsets, query.device());
    const int64_t longest_query = longest_of(query_offsets), longest_context = longest_of(context_offsets);
    const auto result = at::_efficient_attention_forward(
        heads_view(query, 0, dim, heads), heads_view(key_value, 0, dim, heads), heads_view(key_value, dim, dim, heads),
        /*bias=*/{}, query_starts, context_starts, longest_query, longest_context, /*dropout_p=*/0.0, kNoMask,
        /*compute_log_sumexp=*/true, 1.0 / std::sqrt(static_cast<double>(dim / heads)));
    const at::Tensor& output = std::get<0>(result);
    context->save_for_backward({query, key_value, output, std::get<1>(result), std::get<2>(result), std::get<3>(result),
                                query_starts, context_starts});
    context->saved_data["heads"] = heads;
    context->saved_data["longest_query"] = longest_query;
    context->saved_data["longest_context"] = longest_context;
    // Not an ordinary view: autograd forbids some uses of views made inside a node.
    return at::_unsafe_view(output, {query.size(0), dim});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &query = saved[0], &key_value = saved[1], &output = saved[2];
    const int64_t heads = context->saved_data["heads"].toInt();
    const int64_t dim = query.size(1);
    // More than one split adds up dQ in the order in which blocks happen to finish.
    const std::optional<int64_t> splits =
        at::globalContext().deterministicAlgorithms() ? std::optional<int64_t>(1) : std::nullopt;
    const auto result = at::_efficient_attention_backward(
        heads_view(gradients[0].contiguous(), 0, dim, heads), heads_view(query, 0, dim, heads),
        heads_view(key_value, 0, dim, heads), heads_view(key_value, dim, dim, heads), /*bias=*/{}, output, saved[6],
        saved[7], context->saved_data["longest_query"].toInt(), context->saved_data["longest_context"].toInt(),
        /*logsumexp=*/saved[3], /*dropout_p=*/0.0, /*philox_seed=*/saved[4],
        /*philox_offset=*/saved[5], kNoMask, /*bias_requires_grad=*/false,
        1.0 / std::sqrt(static_cast<double>(dim / heads)), splits);
    const auto rows = [&](const at::Tensor& gradient) { return gradient.reshape({gradient.size(1), dim}); };
    return {rows(std::get<0>(result)), at::cat({rows(std::get<1>(result)), rows(std::get<2>(result))}, 1), {}, {}, {}};
  }
};

// Rows of samples of one length as [samples, heads, rows, width].
at::Tensor by_sample(const at::Tensor& table, int64_t samples, int64_t heads) {
  return table.view({samples, table.size(0) / samples, heads, table.size(1) / heads}).transpose(1, 2);
}

}  // namespace

bool can_fuse_attention(const at::Tensor& query, const std::vector<int64_t>& query_offsets,
                        const std::vector<int64_t>& context_offsets, int64_t heads) {
  if (!query.is_cuda()) return false;
  constexpr int64_t kLoadBytes = 16, kMostSamples = 65535;  // of one load, and of the grid's third dimension
  const bool dtype = query.scalar_type() == at::kFloat || query.scalar_type() == at::kBFloat16;
  return dtype && query.size(1) / heads * query.element_size() % kLoadBytes == 0 && query_offsets.size() > 1 &&
         static_cast<int64_t>(query_offsets.size()) - 1 <= kMostSamples && !has_empty(query_offsets) &&
         !has_empty(context_offsets) &&
         std::max(query_offsets.back(), context_offsets.back()) <= std::numeric_limits<int32_t>::max();
}

at::Tensor fused_attention(const at::Tensor& query, const at::Tensor& key_value,
                           const std::vector<int64_t>& query_offsets, const std::vector<int64_t>& context_offsets,
                           int64_t heads) {
  return FusedAttentionFunction::apply(query, key_value, query_offsets, context_offsets, heads);
}

bool can_fuse_biased_attention(const at::Tensor& query) {
  return query.is_cuda() && !at::globalContext().deterministicAlgorithms();
}

at::Tensor fused_biased_attention(const at::Tensor& query, const at::Tensor& key_value, const at::Tensor& gate,
                                  const at::Tensor& table, const std::vector<int64_t>& offsets, int64_t heads) {
  // As in attention.cpp: autocast has chosen the inputs' dtype already.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const int64_t dim = query.size(1), rows = longest_of(offsets), middle = (table.size(0) + 1) / 2 - 1;
  if (rows == 0) return query.mul(0);
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim / heads));
  const auto groups = attention_groups(offsets, offsets, heads);
  std::vector<int64_t> sizes;
  for (const auto& group : groups) sizes.push_back(group.samples * group.rows);
  const at::Tensor row = at::arange(rows, at::kLong);
  const at::Tensor distance = upload((row.unsqueeze(0) - row.unsqueeze(1) + middle).flatten(), query.device());
  const at::Tensor distances = table.index_select(0, distance).view({rows, rows, heads}).permute({2, 0, 1});
  const auto queries = query.split_with_sizes(sizes), keys = key_value.narrow(1, 0, dim).split_with_sizes(sizes),
             values = key_value.narrow(1, dim, dim).split_with_sizes(sizes), gates = gate.split_with_sizes(sizes);
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i < groups.size(); ++i) {
    const int64_t samples = groups[i].samples, n = groups[i].rows;
    const at::Tensor bias = by_sample(gates[i], samples, heads) * distances.narrow(1, 0, n).narrow(2, 0, n);
    const at::Tensor seen = at::scaled_dot_product_attention(
        by_sample(queries[i], samples, heads), by_sample(keys[i], samples, heads), by_sample(values[i], samples, heads),
        bias.to(query.scalar_type()), /*dropout_p=*/0.0,
        /*is_causal=*/false, scale);
    outputs.push_back(seen.transpose(1, 2).reshape({samples * n, dim}));
  }
  return at::cat(outputs);
}

}  // namespace muster::kernels
