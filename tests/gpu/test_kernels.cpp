// The kernels on a GPU against the same functions on the CPU, which other tests hold against independent
// implementations.
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "core/kernels/attention.h"
#include "core/kernels/biased_attention.h"
#include "core/kernels/dropout.h"
#include "core/kernels/fused_attention.h"
#include "core/random/philox.h"
#include "tests/core/kernels/plain_attention.h"
#include "tests/gpu/gpu.h"
#include "tests/helpers/rounding.h"

namespace muster::kernels {
namespace {

class Kernels : public gpu::Gpu {};

double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  if (b.numel() == 0) return a.numel() == 0 ? 0 : std::numeric_limits<double>::infinity();
  const at::Tensor reference = b.to(at::kDouble);
  return ((a.to(at::kCPU).to(at::kDouble) - reference).abs().max() / reference.abs().max().clamp_min(1e-30))
      .item<double>();
}

// Turns PyTorch's deterministic mode on for a scope.
class Deterministic {
 public:
  Deterministic() { at::globalContext().setDeterministicAlgorithms(true, false); }
  ~Deterministic() { at::globalContext().setDeterministicAlgorithms(false, false); }
};

TEST_F(Kernels, DropoutHasTheBitsOfTheCpu) {
  const std::vector<std::vector<int64_t>> all_lengths{
      {1}, {0, 5, 1, 0}, {3, 7, 2, 300}, {0, 0}, std::vector<int64_t>(700, 1), {5000, 1}};
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16})
    for (const int64_t dim : {1, 3, 4, 7, 64, 513})
      for (const auto& lengths : all_lengths)
        for (const double p : {1e-9, 0.1, 0.5, 0.999}) {
          SCOPED_TRACE(std::string(c10::toString(dtype)) + " dim " + std::to_string(dim) + " p " + std::to_string(p));
          const auto offsets = offsets_of(lengths);
          std::vector<int64_t> batch_index;
          for (size_t i = 0; i < lengths.size(); ++i)
            batch_index.push_back((int64_t{1} << 31) + 977 * static_cast<int64_t>(i));
          const DropoutKey key{0xdeadbeef12345678u, 0xfffffff0u, random::kDropout + 5};
          at::manual_seed(1);
          const at::Tensor x = at::randn({offsets.back(), dim}, at::kDouble).to(dtype), gradient = at::randn_like(x);
          const at::Tensor on_cpu = leaf(x), on_gpu = leaf(x.to(device_));
          const at::Tensor expected = dropout(on_cpu, p, offsets, batch_index, key);
          const at::Tensor actual = dropout(on_gpu, p, offsets, batch_index, key);
          ASSERT_TRUE(actual.is_cuda());
          ASSERT_TRUE(actual.to(at::kCPU).equal(expected));
          torch::autograd::backward({expected}, {gradient});
          torch::autograd::backward({actual}, {gradient.to(device_)});
          ASSERT_TRUE(on_gpu.grad().to(at::kCPU).equal(on_cpu.grad()));
        }
}

TEST_F(Kernels, DropoutOfInfinitiesLeavesNoNan) {
  const at::Tensor x = at::full({100, 8}, std::numeric_limits<float>::infinity(), at::TensorOptions().device(device_));
  EXPECT_FALSE(dropout(x, 0.5, {0, 100}, {0}, {1, 2, 20}).isnan().any().item<bool>());
}

struct AttentionCase {
  std::vector<int64_t> query_lengths, context_lengths;
  int64_t heads, dim;
};

const std::vector<AttentionCase> kAttentionCases{
    {{1}, {1}, 1, 8},
    {{5, 3, 1, 17}, {2, 9, 1, 40}, 4, 32},
    {{50, 70, 3}, {200, 1, 350}, 8, 256},
    {{50, 70, 3}, {200, 1, 350}, 16, 1024},
    {{1, 1, 1, 1}, {5, 60, 7, 300}, 2, 128},  // MIAR's last layer: one query each
    {{5, 0, 4}, {3, 2, 6}, 2, 16},            // no queries
    {{5, 2, 4}, {3, 0, 6}, 2, 16},            // no context
    {{4, 6}, {5, 7}, 2, 6},                   // heads too narrow for the fused kernel
    {std::vector<int64_t>(300, 3), std::vector<int64_t>(300, 4), 2, 16},
};

struct AttentionResult {
  at::Tensor output, query_gradient, key_value_gradient;
};

AttentionResult run_attention(const at::Tensor& query, const at::Tensor& key_value, const at::Tensor& cotangent,
                              const AttentionCase& c, decltype(&plain_attention) function = attention) {
  const at::Tensor q = leaf(query), kv = leaf(key_value);
  const at::Tensor output = function(q, kv, offsets_of(c.query_lengths), offsets_of(c.context_lengths), c.heads);
  if (output.requires_grad()) torch::autograd::backward({output}, {cotangent});
  return {output.detach(), gradient_of(q), gradient_of(kv)};
}

TEST_F(Kernels, AttentionEqualsTheCpuInFloat64) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const auto& c : kAttentionCases) {
      SCOPED_TRACE(std::string(c10::toString(dtype)) + " " + std::to_string(c.heads) + " heads, dim " +
                   std::to_string(c.dim));
      at::manual_seed(2);
      const int64_t q = offsets_of(c.query_lengths).back(), k = offsets_of(c.context_lengths).back();
      const at::Tensor query = at::randn({q, c.dim}, at::kDouble).to(dtype),
                       key_value = at::randn({k, 2 * c.dim}, at::kDouble).to(dtype);
      const at::Tensor cotangent = at::randn({q, c.dim}, at::kDouble).to(dtype);
      const auto expected =
          run_attention(query.to(at::kDouble), key_value.to(at::kDouble), cotangent.to(at::kDouble), c);
      const auto actual = run_attention(query.to(device_), key_value.to(device_), cotangent.to(device_), c);
      EXPECT_EQ(actual.output.scalar_type(), dtype);
      if (dtype == at::kDouble) {
        // Of the result's largest element: rounding of products over up to 350 context rows.
        EXPECT_LT(relative_difference(actual.output, expected.output), 1e-13);
        EXPECT_LT(relative_difference(actual.query_gradient, expected.query_gradient), 1e-13);
        EXPECT_LT(relative_difference(actual.key_value_gradient, expected.key_value_gradient), 1e-13);
        continue;
      }
      const auto theirs =
          run_attention(query.to(device_), key_value.to(device_), cotangent.to(device_), c, plain_attention);
      expect_as_exact_as_pytorch(actual.output, theirs.output, expected.output, 1, "output");
      expect_as_exact_as_pytorch(actual.query_gradient, theirs.query_gradient, expected.query_gradient, 1,
                                 "gradient of the queries");
      expect_as_exact_as_pytorch(actual.key_value_gradient, theirs.key_value_gradient, expected.key_value_gradient, 1,
                                 "gradient of the context");
    }
  }
}

TEST_F(Kernels, BiasedAttentionEqualsTheCpuInFloat64) {
  constexpr int64_t kHeads = 8, kDim = 512, kLongest = 350;
  const std::vector<int64_t> lengths{50, 350, 3, 3, 0, 120}, places{4, 0, 2, 7, 5, 1};
  const auto offsets = offsets_of(lengths);
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    SCOPED_TRACE(c10::toString(dtype));
    at::manual_seed(2);
    const auto random = [&](at::IntArrayRef shape) { return at::randn(shape, at::kDouble).to(dtype); };
    const std::vector<at::Tensor> inputs{random({offsets.back(), kDim}), random({offsets.back(), 2 * kDim}),
                                         random({offsets.back(), kHeads}), random({2 * kLongest - 1, kHeads})};
    const at::Tensor cotangent = random({offsets.back(), kDim});
    // Output and gradients.
    const auto differentiated = [&](c10::Device device, at::ScalarType in) {
      std::vector<at::Tensor> x, results;
      for (const auto& input : inputs) x.push_back(leaf(input.to(device, in)));
      const at::Tensor output =
          biased_attention(x[0], x[1], offsets, kHeads, AttentionBias{x[2], x[3]}, 0, places, {1, 2, 3});
      torch::autograd::backward({output}, {cotangent.to(device, in)});
      results.push_back(output.detach());
      for (const auto& one : x) results.push_back(gradient_of(one));
      return results;
    };
    const auto actual = differentiated(device_, dtype), expected = differentiated(at::kCPU, at::kDouble),
               theirs = differentiated(at::kCPU, dtype);
    for (size_t i = 0; i < actual.size(); ++i) {
      SCOPED_TRACE(i);
      if (dtype == at::kDouble)
        EXPECT_LT(relative_difference(actual[i], expected[i]), 1e-12);
      else
        expect_as_exact_as_pytorch(actual[i], theirs[i], expected[i], 1, "float32");
    }
  }
}

TEST_F(Kernels, AttentionUsesTheFusedKernelWhereItCan) {
  const at::Tensor query = at::zeros({6, 16}, at::TensorOptions().device(device_));
  EXPECT_TRUE(can_fuse_attention(query, {0, 2, 6}, {0, 1, 3}, 2));
  EXPECT_TRUE(can_fuse_attention(query.to(at::kBFloat16), {0, 2, 6}, {0, 1, 3}, 2));
  EXPECT_FALSE(can_fuse_attention(query.to(at::kDouble), {0, 2, 6}, {0, 1, 3}, 2));
  EXPECT_FALSE(can_fuse_attention(query, {0, 2, 6}, {0, 3, 3}, 2));
  EXPECT_FALSE(can_fuse_attention(query, {0, 6, 6}, {0, 1, 3}, 2));
  EXPECT_FALSE(can_fuse_attention(query, {0, 2, 6}, {0, 1, 3}, 8));
}

TEST_F(Kernels, AttentionWithoutContextIsExactlyZero) {
  const AttentionCase c{{5, 2, 4}, {3, 0, 6}, 2, 16};
  at::manual_seed(3);
  const auto options = at::TensorOptions().device(device_);
  const auto result =
      run_attention(at::randn({11, 16}, options), at::randn({9, 32}, options), at::randn({11, 16}, options), c);
  EXPECT_TRUE(result.output.slice(0, 5, 7).eq(0).all().item<bool>());
  EXPECT_TRUE(result.query_gradient.slice(0, 5, 7).eq(0).all().item<bool>());
}

TEST_F(Kernels, AttentionRepeatsItsBitsInDeterministicMode) {
  const Deterministic mode;
  const AttentionCase c{{50, 70, 3}, {200, 1, 350}, 8, 256};
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    at::manual_seed(4);
    const auto options = at::TensorOptions().device(device_).dtype(dtype);
    const at::Tensor query = at::randn({123, 256}, options), key_value = at::randn({551, 512}, options),
                     cotangent = at::randn_like(query);
    const auto first = run_attention(query, key_value, cotangent, c);
    for (int repeat = 0; repeat < 20; ++repeat) {
      const auto again = run_attention(query, key_value, cotangent, c);
      ASSERT_TRUE(again.output.equal(first.output));
      ASSERT_TRUE(again.query_gradient.equal(first.query_gradient));
      ASSERT_TRUE(again.key_value_gradient.equal(first.key_value_gradient));
    }
  }
}

TEST_F(Kernels, SegmentMeanEqualsTheCpu) {
  const Deterministic mode;  // nothing in it may need an operation that PyTorch has no deterministic version of
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const int64_t dim : {1, 5, 300, 1100})
      for (const auto& lengths :
           std::vector<std::vector<int64_t>>{{4}, {0, 3, 0, 900, 1}, {0, 0}, std::vector<int64_t>(1000, 2)}) {
        SCOPED_TRACE(std::string(c10::toString(dtype)) + " dim " + std::to_string(dim) + ", " +
                     std::to_string(lengths.size()) + " samples");
        const auto offsets = offsets_of(lengths);
        at::manual_seed(5);
        const at::Tensor x = at::randn({offsets.back(), dim}, at::kDouble).to(dtype);
        const at::Tensor cotangent = at::randn({static_cast<int64_t>(lengths.size()), dim}, at::kDouble).to(dtype);
        const at::Tensor on_cpu = leaf(x.to(at::kDouble)), on_gpu = leaf(x.to(device_)), plain = leaf(x.to(device_));
        const at::Tensor expected = segment_mean(on_cpu, offsets), actual = segment_mean(on_gpu, offsets);
        const at::Tensor theirs = plain_segment_mean(plain, offsets);
        torch::autograd::backward({expected}, {cotangent.to(at::kDouble)});
        torch::autograd::backward({actual}, {cotangent.to(device_)});
        if (theirs.requires_grad()) torch::autograd::backward({theirs}, {cotangent.to(device_)});
        if (dtype == at::kDouble) {
          EXPECT_LT(largest_error(actual, expected), 1e-14);
          EXPECT_LE(relative_difference(on_gpu.grad(), on_cpu.grad()), 1e-14);
        } else {
          expect_as_exact_as_pytorch(actual.detach(), theirs.detach(), expected.detach(), 1, "means");
          expect_as_exact_as_pytorch(on_gpu.grad(), gradient_of(plain), on_cpu.grad(), 1, "gradient");
        }
        for (size_t s = 0; s < lengths.size(); ++s)
          EXPECT_TRUE(lengths[s] > 0 || actual[static_cast<int64_t>(s)].eq(0).all().item<bool>());
      }
  }
}

}  // namespace
}  // namespace muster::kernels
