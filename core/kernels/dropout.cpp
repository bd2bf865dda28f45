#include "core/kernels/dropout.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <numeric>

#include "core/random/philox.h"

// The compiler makes one version per instruction set and the loader picks: integers and one multiplication, so all give the same
// bits. Sanitizers cannot instrument the loader's choice.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define MUSTER_CPU_VERSIONS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MUSTER_CPU_VERSIONS
#endif

namespace muster::kernels {
namespace {

constexpr int64_t kLanes = 16;          // Philox blocks made together
constexpr int64_t kChunk = 4 * kLanes;  // elements they cover

// Words of blocks [first, first + kLanes) of one sample, block-major: words[4 * lane + i].
// Structure of arrays inside, so that it vectorises; the same numbers as random::philox4x32.
MUSTER_CPU_VERSIONS
void philox_lanes(uint64_t seed, uint32_t first, uint32_t row, uint32_t site, uint32_t step, uint32_t* words) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    c0[i] = first + static_cast<uint32_t>(i);
    c1[i] = row;
    c2[i] = site;
    c3[i] = step;
  }
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const uint64_t product0 = uint64_t{0xD2511F53u} * c0[i];
      const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2[i];
      c0[i] = static_cast<uint32_t>(product1 >> 32) ^ c1[i] ^ key0;
      c2[i] = static_cast<uint32_t>(product0 >> 32) ^ c3[i] ^ key1;
      c1[i] = static_cast<uint32_t>(product1);
      c3[i] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int64_t i = 0; i < kLanes; ++i) {
    words[4 * i] = c0[i];
    words[4 * i + 1] = c1[i];
    words[4 * i + 2] = c2[i];
    words[4 * i + 3] = c3[i];
  }
}

// Smallest 24-bit number that is kept: uniform(word) >= p  <=>  (word >> 8) >= threshold.
uint32_t keep_threshold(double p) { return static_cast<uint32_t>(std::ceil(p * 0x1p24 - 0.5)); }

template <typename Scalar>
void drop_sample(const Scalar* in, Scalar* out, int64_t elements, double p, uint32_t row, const DropoutKey& key) {
  const uint32_t threshold = keep_threshold(p);
  using Compute = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;
  const Compute scale = static_cast<Compute>(1.0 / (1.0 - p));
  uint32_t words[kChunk];
  for (int64_t start = 0; start < elements; start += kChunk) {
    philox_lanes(key.seed, static_cast<uint32_t>(start / 4), row, key.site, key.step, words);
    const int64_t count = std::min(kChunk, elements - start);
    for (int64_t i = 0; i < count; ++i) {
      const Compute kept = static_cast<Compute>(in[start + i]) * scale;
      // A select, not a product with 0: a dropped infinity must become 0, not NaN.
      out[start + i] = (words[i] >> 8) >= threshold ? static_cast<Scalar>(kept) : Scalar(0);
    }
  }
}

at::Tensor masked(const at::Tensor& x, double p, const std::vector<int64_t>& offsets, const std::vector<int64_t>& global_rows,
                  const DropoutKey& key) {
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty_like(in);
  const int64_t dim = in.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, in.scalar_type(), "dropout", [&] {
    const scalar_t* source = in.const_data_ptr<scalar_t>();
    scalar_t* target = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, static_cast<int64_t>(global_rows.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        drop_sample(source + offsets[s] * dim, target + offsets[s] * dim, (offsets[s + 1] - offsets[s]) * dim, p,
                    static_cast<uint32_t>(global_rows[s]), key);
    });
  });
  return out;
}

struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, double p,
                            const std::vector<int64_t>& offsets, const std::vector<int64_t>& global_rows, int64_t seed,
                            int64_t step, int64_t site) {
    context->saved_data["p"] = p;
    context->saved_data["offsets"] = offsets;
    context->saved_data["global_rows"] = global_rows;
    context->saved_data["seed"] = seed;
    context->saved_data["step"] = step;
    context->saved_data["site"] = site;
    return masked(x, p, offsets, global_rows,
                 {static_cast<uint64_t>(seed), static_cast<uint32_t>(step), static_cast<uint32_t>(site)});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto& saved = context->saved_data;
    const DropoutKey key{static_cast<uint64_t>(saved.at("seed").toInt()), static_cast<uint32_t>(saved.at("step").toInt()),
                         static_cast<uint32_t>(saved.at("site").toInt())};
    at::Tensor gradient = masked(gradients[0], saved.at("p").toDouble(), saved.at("offsets").toIntVector(),
                                saved.at("global_rows").toIntVector(), key);
    return {gradient, {}, {}, {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor dropout(const at::Tensor& x, double p, const std::vector<int64_t>& offsets, const std::vector<int64_t>& global_rows,
                   const DropoutKey& key) {
  if (p == 0) return x;
  return DropoutFunction::apply(x, p, offsets, global_rows, static_cast<int64_t>(key.seed), int64_t{key.step}, int64_t{key.site});
}

at::Tensor dropout_rows(const at::Tensor& x, double p, const std::vector<int64_t>& global_rows, const DropoutKey& key) {
  std::vector<int64_t> offsets(global_rows.size() + 1);
  std::iota(offsets.begin(), offsets.end(), 0);
  return dropout(x, p, offsets, global_rows, key);
}

}  // namespace muster::kernels
