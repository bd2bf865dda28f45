#include "core/kernels/token_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

namespace muster::kernels {
namespace {

// In lanes, so that the compiler can vectorise it without changing the order of the sum.
template <typename Scalar>
Scalar dot(const Scalar* a, const Scalar* b, int64_t count) {
  constexpr int64_t kLanes = 8;
  Scalar lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  Scalar sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// y += factor x
template <typename Scalar>
void add_scaled(Scalar* __restrict__ y, Scalar factor, const Scalar* __restrict__ x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] += factor * x[i];
}

// One sample's: rows of keys and values [rows, 2 dim], of which there is one at least, weights [rows, heads].
struct Shape {
  int64_t rows, dim, heads;
  int64_t width() const { return dim / heads; }
};

template <typename Scalar>
void attend(const Shape& shape, const Scalar* query, const Scalar* key_value, Scalar* weights, Scalar* output) {
  const auto [rows, dim, heads] = shape;
  const int64_t width = shape.width();
  const Scalar scale = static_cast<Scalar>(1.0 / std::sqrt(static_cast<double>(width)));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = 0; head < heads; ++head)
      weights[row * heads + head] = scale * dot(query + head * width, key_value + row * 2 * dim + head * width, width);
  for (int64_t head = 0; head < heads; ++head) {
    Scalar most = weights[head], sum = 0;
    for (int64_t row = 1; row < rows; ++row) most = std::max(most, weights[row * heads + head]);
    for (int64_t row = 0; row < rows; ++row)
      sum += weights[row * heads + head] = std::exp(weights[row * heads + head] - most);
    for (int64_t row = 0; row < rows; ++row) weights[row * heads + head] /= sum;
  }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = 0; head < heads; ++head)
      add_scaled(output + head * width, weights[row * heads + head], key_value + row * 2 * dim + dim + head * width,
                 width);
}

// Adds to query_gradient, sets key_value_gradient.
template <typename Scalar>
void attend_backward(const Shape& shape, const Scalar* query, const Scalar* key_value, const Scalar* weights,
                     const Scalar* gradient, Scalar* query_gradient, Scalar* key_value_gradient) {
  const auto [rows, dim, heads] = shape;
  const int64_t width = shape.width();
  const Scalar scale = static_cast<Scalar>(1.0 / std::sqrt(static_cast<double>(width)));
  std::vector<Scalar> weight_gradient(rows * heads), mean(heads, 0);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = row * heads + head;
      weight_gradient[at] = dot(gradient + head * width, key_value + row * 2 * dim + dim + head * width, width);
      mean[head] += weights[at] * weight_gradient[at];
    }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = row * heads + head;
      const Scalar score_gradient = scale * weights[at] * (weight_gradient[at] - mean[head]);
      Scalar* key_gradient = key_value_gradient + row * 2 * dim + head * width;
      for (int64_t i = 0; i < width; ++i) key_gradient[i] = score_gradient * query[head * width + i];
      for (int64_t i = 0; i < width; ++i) key_gradient[dim + i] = weights[at] * gradient[head * width + i];
      add_scaled(query_gradient + head * width, score_gradient, key_value + row * 2 * dim + head * width, width);
    }
}

// Whose context is not empty.
template <class Work>
void for_samples(const std::vector<int64_t>& offsets, const Work& work) {
  at::parallel_for(0, static_cast<int64_t>(offsets.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t sample = begin; sample < end; ++sample)
      if (const int64_t rows = offsets[sample + 1] - offsets[sample]; rows > 0) work(sample, offsets[sample], rows);
  });
}

struct TokenAttentionFunction : torch::autograd::Function<TokenAttentionFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key_value, const std::vector<int64_t>& context_offsets, int64_t heads) {
    const at::Tensor q = query.contiguous(), kv = key_value.contiguous();
    const int64_t dim = q.size(1);
    const at::Tensor weights = at::empty({kv.size(0), heads}, q.options()), output = at::zeros_like(q);
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "token_attention", [&] {
      const auto *query_data = q.const_data_ptr<scalar_t>(), *key_value_data = kv.const_data_ptr<scalar_t>();
      auto *weight_data = weights.mutable_data_ptr<scalar_t>(), *output_data = output.mutable_data_ptr<scalar_t>();
      for_samples(context_offsets, [&](int64_t sample, int64_t first, int64_t rows) {
        attend<scalar_t>({rows, dim, heads}, query_data + sample * dim, key_value_data + first * 2 * dim,
                         weight_data + first * heads, output_data + sample * dim);
      });
    });
    context->save_for_backward({q, kv});
    context->saved_data["weights"] = weights;
    context->saved_data["context_offsets"] = context_offsets;
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &kv = saved[1], weights = context->saved_data["weights"].toTensor(),
                     gradient = gradients[0].contiguous();
    const int64_t dim = q.size(1), heads = weights.size(1);
    const at::Tensor query_gradient = at::zeros_like(q), key_value_gradient = at::empty_like(kv);
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "token_attention", [&] {
      const auto *query_data = q.const_data_ptr<scalar_t>(), *key_value_data = kv.const_data_ptr<scalar_t>();
      const auto *weight_data = weights.const_data_ptr<scalar_t>(),
                 *gradient_data = gradient.const_data_ptr<scalar_t>();
      auto *query_out = query_gradient.mutable_data_ptr<scalar_t>(),
           *key_value_out = key_value_gradient.mutable_data_ptr<scalar_t>();
      for_samples(
          context->saved_data["context_offsets"].toIntVector(), [&](int64_t sample, int64_t first, int64_t rows) {
            attend_backward<scalar_t>({rows, dim, heads}, query_data + sample * dim, key_value_data + first * 2 * dim,
                                      weight_data + first * heads, gradient_data + sample * dim,
                                      query_out + sample * dim, key_value_out + first * 2 * dim);
          });
    });
    return {query_gradient, key_value_gradient, {}, {}};
  }
};

}  // namespace

bool is_token_attention(const at::Tensor& query, const std::vector<int64_t>& query_offsets) {
  if (!query.is_cpu() || (query.scalar_type() != at::kFloat && query.scalar_type() != at::kDouble)) return false;
  for (size_t i = 0; i < query_offsets.size(); ++i)
    if (query_offsets[i] != static_cast<int64_t>(i)) return false;
  return true;
}

at::Tensor token_attention(const at::Tensor& query, const at::Tensor& key_value,
                           const std::vector<int64_t>& context_offsets, int64_t heads) {
  return TokenAttentionFunction::apply(query, key_value, context_offsets, heads);
}

}  // namespace muster::kernels
