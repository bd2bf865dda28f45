#include "core/kernels/biased_attention.h"

#include <ATen/OpMathType.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "core/kernels/attention_groups.h"
#include "core/kernels/fused_attention.h"

namespace muster::kernels {
namespace {

// table [2 * n - 1, heads] -> [heads, rows, rows] with (h, t, s) = table[n - 1 + s - t, h]. A shorter sample's matrix
// is its upper left corner.
at::Tensor by_distance(const at::Tensor& table, int64_t rows) {
  const at::Tensor by_head = table.t().contiguous();
  const int64_t width = by_head.size(1), n = (width + 1) / 2;
  // A view's strides cannot be negative: it has the rows in reverse order.
  return by_head.as_strided({by_head.size(0), rows, rows}, {width, 1, 1}, by_head.storage_offset() + n - rows).flip(1);
}

// matrices [n, rows, rows] times factors [n, rows, 1] -> [n, 2 * rows - 1]: sums over the diagonals, column
// rows - 1 + s - t. Written with a row stride that is one short, each matrix is sheared until its diagonals are
// columns.
at::Tensor diagonal_sums(const at::Tensor& matrices, const at::Tensor& factors) {
  const int64_t n = matrices.size(0), rows = matrices.size(1), width = 2 * rows - 1;
  at::Tensor sheared = at::zeros({n, rows, width}, matrices.options());
  at::Tensor written = sheared.as_strided({n, rows, rows}, {rows * width, width - 1, 1}, rows - 1);
  at::mul_out(written, matrices, factors);
  return sheared.sum(1);
}

// The dropout of the weights of samples [first, first + samples) with `scores` weights each.
struct WeightDropout {
  double p;
  const std::vector<int64_t>& batch_index;
  DropoutKey key;

  // weights: [samples * heads, queries, keys], contiguous.
  at::Tensor operator()(const at::Tensor& weights, const AttentionGroup& group) const {
    if (p == 0) return weights;
    const int64_t rows = weights.size(0) * weights.size(1), rows_per_sample = rows / group.samples;
    std::vector<int64_t> offsets(group.samples + 1);
    for (int64_t s = 0; s <= group.samples; ++s) offsets[s] = s * rows_per_sample;
    const auto begin = batch_index.begin() + static_cast<int64_t>(group.first);
    return dropout_pass(weights.view({rows, weights.size(2)}), p, offsets, {begin, begin + group.samples}, key)
        .view(weights.sizes());
  }
};

// Columns of rows of gate [rows, heads] as [samples, heads, rows, 1].
at::Tensor gate_of(const at::Tensor& gate, const AttentionGroup& group, int64_t begin) {
  return gate.narrow(0, begin, group.samples * group.rows)
      .view({group.samples, group.rows, gate.size(1), 1})
      .transpose(1, 2);
}

struct BiasedAttentionFunction : torch::autograd::Function<BiasedAttentionFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key_value, const std::optional<at::Tensor>& gate,
                            const std::optional<at::Tensor>& table, const std::vector<int64_t>& offsets, int64_t heads,
                            double p, const std::vector<int64_t>& batch_index, int64_t seed, int64_t step,
                            int64_t site) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const int64_t dim = query.size(1);
    const HeadViews heads_of{dim, heads};
    const double scale = 1.0 / std::sqrt(static_cast<double>(dim / heads));
    const at::ScalarType wide = at::toOpMathType(query.scalar_type());
    const WeightDropout dropped{
        p, batch_index, {static_cast<uint64_t>(seed), static_cast<uint32_t>(step), static_cast<uint32_t>(site)}};
    at::Tensor output = at::zeros_like(query, at::MemoryFormat::Contiguous);
    at::Tensor distances;
    if (table && longest_of(offsets) > 0) distances = by_distance(*table, longest_of(offsets));
    std::vector<at::Tensor> probabilities;
    for (const auto& group : attention_groups(offsets, offsets, heads)) {
      const int64_t begin = offsets[group.first], samples = group.samples, rows = group.rows;
      const at::Tensor q = merged_heads(heads_of(query, begin, samples, rows, 0));
      const at::Tensor k = merged_heads(heads_of(key_value, begin, samples, rows, 0));
      const at::Tensor v = merged_heads(heads_of(key_value, begin, samples, rows, dim));
      at::Tensor scores = attention_scores(q, k, scale, wide);
      if (table)
        scores.view({samples, heads, rows, rows})
            .addcmul_(gate_of(*gate, group, begin), distances.narrow(1, 0, rows).narrow(2, 0, rows));
      at::Tensor weights = at::_softmax(scores, -1, false);
      write_heads(heads_of(output, begin, samples, rows, 0), at::bmm(dropped(weights, group).to(v.scalar_type()), v));
      probabilities.push_back(std::move(weights));
    }
    context->save_for_backward({query, key_value, gate.value_or(at::Tensor()), table.value_or(at::Tensor())});
    context->saved_data["probabilities"] = probabilities;
    context->saved_data["offsets"] = offsets;
    context->saved_data["heads"] = heads;
    context->saved_data["p"] = p;
    context->saved_data["batch_index"] = batch_index;
    context->saved_data["seed"] = seed;
    context->saved_data["step"] = step;
    context->saved_data["site"] = site;
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor &query = saved[0], &key_value = saved[1], &gate = saved[2], &table = saved[3];
    const auto& data = context->saved_data;
    const auto probabilities = data.at("probabilities").toTensorVector();
    const auto offsets = data.at("offsets").toIntVector(), batch_index = data.at("batch_index").toIntVector();
    const int64_t heads = data.at("heads").toInt(), dim = query.size(1);
    const HeadViews heads_of{dim, heads};
    const double scale = 1.0 / std::sqrt(static_cast<double>(dim / heads));
    const WeightDropout dropped{
        data.at("p").toDouble(),
        batch_index,
        {static_cast<uint64_t>(data.at("seed").toInt()), static_cast<uint32_t>(data.at("step").toInt()),
         static_cast<uint32_t>(data.at("site").toInt())}};
    const at::Tensor output_gradient = gradients[0].contiguous();
    at::Tensor query_gradient = at::zeros_like(query, at::MemoryFormat::Contiguous);
    at::Tensor key_value_gradient = at::zeros_like(key_value, at::MemoryFormat::Contiguous);
    const bool biased = table.defined(), needs_gate = biased && context->needs_input_grad(2),
               needs_table = biased && context->needs_input_grad(3);
    const int64_t longest = longest_of(offsets), middle = biased ? (table.size(0) + 1) / 2 : 0;
    at::Tensor gate_gradient, table_gradient, distances;
    if (needs_gate) gate_gradient = at::zeros_like(gate, at::MemoryFormat::Contiguous);
    if (needs_gate && longest > 0) distances = by_distance(table, longest);
    if (needs_table) table_gradient = at::zeros({heads, table.size(0)}, table.options());
    size_t next = 0;
    for (const auto& group : attention_groups(offsets, offsets, heads)) {
      const int64_t begin = offsets[group.first], samples = group.samples, rows = group.rows;
      const at::Tensor q = merged_heads(heads_of(query, begin, samples, rows, 0));
      const at::Tensor k = merged_heads(heads_of(key_value, begin, samples, rows, 0));
      const at::Tensor v = merged_heads(heads_of(key_value, begin, samples, rows, dim));
      const at::Tensor d_output = merged_heads(heads_of(output_gradient, begin, samples, rows, 0));
      const at::Tensor& weights = probabilities[next++];
      write_heads(heads_of(key_value_gradient, begin, samples, rows, dim),
                  at::bmm(dropped(weights, group).transpose(1, 2).to(v.scalar_type()), d_output));
      const at::Tensor d_weights = dropped(at::bmm(d_output, v.transpose(1, 2)).to(weights.scalar_type()), group);
      at::Tensor d_scores = at::_softmax_backward_data(d_weights, weights, -1, weights.scalar_type());
      const std::vector<int64_t> by_sample{samples, heads, rows, rows};
      if (needs_gate)
        gate_gradient.narrow(0, begin, samples * rows)
            .view({samples, rows, heads})
            .copy_((d_scores.view(by_sample) * distances.narrow(1, 0, rows).narrow(2, 0, rows)).sum(3).transpose(1, 2));
      if (needs_table)
        table_gradient.narrow(1, middle - rows, 2 * rows - 1)
            .add_(diagonal_sums(d_scores, gate_of(gate, group, begin).reshape({samples * heads, rows, 1}))
                      .view({samples, heads, 2 * rows - 1})
                      .sum(0));
      d_scores = d_scores.mul_(scale).to(query.scalar_type());
      write_heads(heads_of(query_gradient, begin, samples, rows, 0), at::bmm(d_scores, k));
      write_heads(heads_of(key_value_gradient, begin, samples, rows, 0), at::bmm(d_scores.transpose(1, 2), q));
    }
    return {query_gradient,
            key_value_gradient,
            gate_gradient,
            needs_table ? table_gradient.t() : at::Tensor(),
            {},
            {},
            {},
            {},
            {},
            {},
            {}};
  }
};

}  // namespace

at::Tensor biased_attention(const at::Tensor& query, const at::Tensor& key_value, const std::vector<int64_t>& offsets,
                            int64_t heads, const std::optional<AttentionBias>& bias, double p,
                            const std::vector<int64_t>& batch_index, const DropoutKey& key) {
  TORCH_CHECK(offsets.back() == query.size(0) && key_value.size(0) == query.size(0),
              "biased_attention: the offsets do not end with the rows");
  TORCH_CHECK(query.size(1) % heads == 0 && key_value.size(1) == 2 * query.size(1), "biased_attention: ", heads,
              " heads of ", query.size(1), " columns, beside ", key_value.size(1));
  std::optional<at::Tensor> gate, table;
  if (bias) {
    const at::ScalarType wide = at::toOpMathType(query.scalar_type());
    gate = bias->gate.to(wide).contiguous();
    table = bias->table.to(wide);
    TORCH_CHECK(gate->size(0) == query.size(0) && gate->size(1) == heads && table->size(1) == heads &&
                    2 * longest_of(offsets) - 1 <= table->size(0),
                "biased_attention: gate ", gate->sizes(), " and table ", table->sizes());
  }
  if (gate && p == 0 && can_fuse_biased_attention(query))
    return fused_biased_attention(query.contiguous(), key_value, *gate, *table, offsets, heads);
  return BiasedAttentionFunction::apply(query, key_value, gate, table, offsets, heads, p, batch_index,
                                        static_cast<int64_t>(key.seed), int64_t{key.step}, int64_t{key.site});
}

}  // namespace muster::kernels
