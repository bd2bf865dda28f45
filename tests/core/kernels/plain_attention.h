#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace muster::kernels {

inline std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

inline at::Tensor leaf(const at::Tensor& x) { return x.detach().clone().requires_grad_(); }

// Ragged attention by PyTorch's own operator, one sample at a time.
inline at::Tensor plain_attention(const at::Tensor& query, const at::Tensor& key_value, const std::vector<int64_t>& q,
                                  const std::vector<int64_t>& c, int64_t heads) {
  const int64_t dim = query.size(1);
  std::vector<at::Tensor> outputs;
  for (size_t s = 0; s + 1 < q.size(); ++s) {
    const auto per_head = [&](const at::Tensor& rows) {  // [1, heads, rows, dim / heads]
      return rows.reshape({rows.size(0), heads, dim / heads}).permute({1, 0, 2}).unsqueeze(0);
    };
    const at::Tensor queries = query.slice(0, q[s], q[s + 1]);
    const at::Tensor context = key_value.slice(0, c[s], c[s + 1]);
    if (queries.size(0) == 0 || context.size(0) == 0) {
      outputs.push_back(at::zeros_like(queries));
      continue;
    }
    const at::Tensor output = at::scaled_dot_product_attention(per_head(queries), per_head(context.slice(1, 0, dim)),
                                                               per_head(context.slice(1, dim, 2 * dim)));
    outputs.push_back(output.squeeze(0).permute({1, 0, 2}).reshape({-1, dim}));
  }
  return at::cat(outputs, 0);
}

// Means of the rows of each sample by PyTorch's own operator, 0 where there are none.
inline at::Tensor plain_segment_mean(const at::Tensor& values, const std::vector<int64_t>& offsets) {
  std::vector<at::Tensor> means;
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    means.push_back(offsets[s] == offsets[s + 1] ? at::zeros({values.size(1)}, values.options())
                                                 : values.slice(0, offsets[s], offsets[s + 1]).mean(0));
  return at::stack(means);
}

inline at::Tensor gradient_of(const at::Tensor& x) { return x.grad().defined() ? x.grad() : at::zeros_like(x); }

}  // namespace muster::kernels
