#include "core/kernels/dropout.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>

#include "core/kernels/cuda.h"
#include "core/random/function_multiversioning.h"
#include "core/random/philox_lanes.h"

namespace muster::kernels {
namespace {

constexpr int64_t kChunk = 4 * random::kLanes;  // elements that one call of philox_lanes covers

template <typename Scalar, typename Compute>
__attribute__((always_inline)) inline void drop(const Scalar* in, Scalar* out, const uint32_t* words, int64_t count,
                                                uint32_t threshold, Compute scale) {
  for (int64_t i = 0; i < count; ++i) {
    const Compute kept = static_cast<Compute>(in[i]) * scale;
    // A select, not a product with 0: a dropped infinity must become 0, not NaN.
    out[i] = (words[i] >> 8) >= threshold ? static_cast<Scalar>(kept) : Scalar(0);
  }
}

MUSTER_CPU_VERSIONS
void drop_chunk(const float* in, float* out, const uint32_t* words, uint32_t threshold, float scale) {
  drop(in, out, words, kChunk, threshold, scale);
}

template <typename Scalar>
void drop_sample(const Scalar* in, Scalar* out, int64_t elements, double p, uint32_t row, const DropoutKey& key) {
  const uint32_t threshold = keep_threshold(p);
  using Compute = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;
  const Compute scale = static_cast<Compute>(1.0 / (1.0 - p));
  uint32_t words[kChunk];
  for (int64_t start = 0; start < elements; start += kChunk) {
    random::philox_lanes(key.seed, static_cast<uint32_t>(start / 4), row, key.site, key.step, words);
    const int64_t count = std::min(kChunk, elements - start);
    if constexpr (std::is_same_v<Scalar, float>)
      if (count == kChunk) {
        drop_chunk(in + start, out + start, words, threshold, scale);
        continue;
      }
    drop(in + start, out + start, words, count, threshold, scale);
  }
}

at::Tensor masked(const at::Tensor& x, double p, const std::vector<int64_t>& offsets,
                  const std::vector<int64_t>& batch_index, const DropoutKey& key) {
  const at::Tensor in = x.contiguous();
  if (in.is_cuda()) return dropout_cuda(in, p, offsets, batch_index, key);
  at::Tensor out = at::empty_like(in);
  const int64_t dim = in.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, in.scalar_type(), "dropout", [&] {
    const scalar_t* source = in.const_data_ptr<scalar_t>();
    scalar_t* target = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, static_cast<int64_t>(batch_index.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        drop_sample(source + offsets[s] * dim, target + offsets[s] * dim, (offsets[s + 1] - offsets[s]) * dim, p,
                    static_cast<uint32_t>(batch_index[s]), key);
    });
  });
  return out;
}

struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, double p,
                            const std::vector<int64_t>& offsets, const std::vector<int64_t>& batch_index, int64_t seed,
                            int64_t step, int64_t site) {
    context->saved_data["p"] = p;
    context->saved_data["offsets"] = offsets;
    context->saved_data["batch_index"] = batch_index;
    context->saved_data["seed"] = seed;
    context->saved_data["step"] = step;
    context->saved_data["site"] = site;
    return masked(x, p, offsets, batch_index,
                  {static_cast<uint64_t>(seed), static_cast<uint32_t>(step), static_cast<uint32_t>(site)});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto& saved = context->saved_data;
    const DropoutKey key{static_cast<uint64_t>(saved.at("seed").toInt()),
                         static_cast<uint32_t>(saved.at("step").toInt()),
                         static_cast<uint32_t>(saved.at("site").toInt())};
    at::Tensor gradient = masked(gradients[0], saved.at("p").toDouble(), saved.at("offsets").toIntVector(),
                                 saved.at("batch_index").toIntVector(), key);
    return {gradient, {}, {}, {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor dropout(const at::Tensor& x, double p, const std::vector<int64_t>& offsets,
                   const std::vector<int64_t>& batch_index, const DropoutKey& key) {
  if (p == 0) return x;
  return DropoutFunction::apply(x, p, offsets, batch_index, static_cast<int64_t>(key.seed), int64_t{key.step},
                                int64_t{key.site});
}

at::Tensor dropout_pass(const at::Tensor& x, double p, const std::vector<int64_t>& offsets,
                        const std::vector<int64_t>& batch_index, const DropoutKey& key) {
  return p == 0 ? x : masked(x, p, offsets, batch_index, key);
}

at::Tensor dropout_rows(const at::Tensor& x, double p, const std::vector<int64_t>& batch_index, const DropoutKey& key) {
  std::vector<int64_t> offsets(batch_index.size() + 1);
  std::iota(offsets.begin(), offsets.end(), 0);
  return dropout(x, p, offsets, batch_index, key);
}

}  // namespace muster::kernels
