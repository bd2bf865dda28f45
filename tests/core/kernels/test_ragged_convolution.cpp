// Convolutions over time and the norm of channels against PyTorch's operators.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>

#include "core/kernels/channel_norm.h"
#include "core/kernels/ragged_convolution.h"
#include "tests/core/kernels/plain_attention.h"
#include "tests/helpers/rounding.h"

namespace muster::kernels {
namespace {

using Tensors = std::vector<at::Tensor>;
using Function = std::function<at::Tensor(const Tensors&)>;

// Output and gradients of `function`, computed in dtype `in` of inputs rounded to `given`.
Tensors differentiated(const Function& function, const Tensors& inputs, at::ScalarType given, at::ScalarType in) {
  Tensors leaves;
  for (const auto& input : inputs) leaves.push_back(leaf(input.to(given).to(in)));
  const at::Tensor output = function(leaves);
  at::manual_seed(8);
  (output * at::randn(output.sizes(), at::kDouble).to(given).to(in)).sum().backward();
  Tensors results{output.detach()};
  for (const auto& input : leaves) results.push_back(gradient_of(input));
  return results;
}

void expect_equal(const Function& ours, const Function& theirs, const Tensors& inputs) {
  const auto exact = differentiated(ours, inputs, at::kDouble, at::kDouble),
             expected = differentiated(theirs, inputs, at::kDouble, at::kDouble);
  for (size_t i = 0; i < exact.size(); ++i) {
    ASSERT_EQ(exact[i].sizes(), expected[i].sizes()) << i;
    EXPECT_LT(largest_error(exact[i], expected[i]), 1e-11) << i;
  }
  const auto in_float = differentiated(ours, inputs, at::kFloat, at::kFloat),
             plain = differentiated(theirs, inputs, at::kFloat, at::kFloat),
             truth = differentiated(theirs, inputs, at::kFloat, at::kDouble);
  for (size_t i = 0; i < exact.size(); ++i)
    expect_as_exact_as_pytorch(in_float[i], plain[i], truth[i], 1, fmt::format("float32, {}", i));
}

TEST(Convolution, EqualsConv1d) {
  struct Case {
    int64_t rows, in, out, taps, stride;
    bool bias;
  };
  for (const auto& [rows, in, out, taps, stride, bias] :
       {Case{403, 1, 16, 10, 5, false}, Case{41, 80, 24, 3, 2, true}, Case{40, 80, 24, 2, 2, false},
        Case{37, 70, 8, 5, 2, true}, Case{30, 70, 8, 2, 3, true}, Case{29, 70, 8, 1, 1, false},
        Case{5, 70, 8, 5, 3, true}, Case{19, 6, 4, 4, 1, true}, Case{700, 128, 64, 3, 2, true}}) {
    at::manual_seed(2);
    Tensors inputs{at::randn({rows, in}, at::kDouble), at::randn({out, in, taps}, at::kDouble)};
    if (bias) inputs.push_back(at::randn({out}, at::kDouble));
    SCOPED_TRACE(fmt::format("{} rows of {}, {} taps, stride {}", rows, in, taps, stride));
    expect_equal(
        [&, stride = stride](const Tensors& x) {
          return convolution(x[0], x[1], x.size() > 2 ? std::optional(x[2]) : std::nullopt, stride);
        },
        [&, stride = stride](const Tensors& x) {
          return at::conv1d(x[0].t().unsqueeze(0), x[1], x.size() > 2 ? std::optional(x[2]) : std::nullopt, stride)
              .squeeze(0)
              .t();
        },
        inputs);
  }
  EXPECT_EQ(convolution(at::ones({2, 1}), at::ones({4, 1, 3}), {}, 2).sizes(), (std::vector<int64_t>{0, 4}));
}

TEST(SameConvolution, EqualsConv1dOfEachSample) {
  struct Case {
    std::vector<int64_t> lengths;
    int64_t dim, groups, taps;
  };
  for (const auto& [lengths, dim, groups, taps] :
       {Case{{3, 1, 0, 20}, 8, 2, 4}, Case{{3, 1, 0, 20}, 8, 4, 5}, Case{{9}, 6, 1, 1}, Case{{2, 300}, 16, 2, 128}}) {
    at::manual_seed(4);
    const auto offsets = offsets_of(lengths);
    SCOPED_TRACE(fmt::format("{} groups, {} taps", groups, taps));
    expect_equal([&, groups = groups](const Tensors& x) { return same_convolution(x[0], x[1], offsets, groups); },
                 [&, groups = groups, taps = taps](const Tensors& x) {
                   Tensors outputs;
                   for (size_t s = 0; s + 1 < offsets.size(); ++s) {
                     const at::Tensor own = x[0].slice(0, offsets[s], offsets[s + 1]);
                     if (own.size(0) == 0) continue;
                     const at::Tensor y = at::conv1d(own.t().unsqueeze(0), x[1], {}, 1, taps / 2, 1, groups);
                     outputs.push_back(y.squeeze(0).t().slice(0, 0, own.size(0)));
                   }
                   return at::cat(outputs);
                 },
                 {at::randn({offsets.back(), dim}, at::kDouble), at::randn({dim, dim / groups, taps}, at::kDouble)});
  }
}

TEST(ChannelNorm, EqualsGroupNormOfEachSpan) {
  at::manual_seed(6);
  const std::vector<RowSpan> spans{{0, 30}, {35, 1}, {36, 400}, {440, 2}};
  expect_equal([&](const Tensors& x) { return channel_norm(x[0], x[1], x[2], spans, 1e-5); },
               [&](const Tensors& x) {
                 Tensors parts;
                 int64_t end = 0;
                 for (const auto& [begin, count] : spans) {
                   parts.push_back(at::zeros({begin - end, x[0].size(1)}, x[0].options()));
                   const at::Tensor own = x[0].narrow(0, begin, count).t().unsqueeze(0);
                   parts.push_back(at::group_norm(own, x[0].size(1), x[1], x[2], 1e-5).squeeze(0).t());
                   end = begin + count;
                 }
                 parts.push_back(at::zeros({x[0].size(0) - end, x[0].size(1)}, x[0].options()));
                 return at::cat(parts);
               },
               {at::randn({450, 12}, at::kDouble) + 3, at::randn({12}, at::kDouble), at::randn({12}, at::kDouble)});
}

}  // namespace
}  // namespace muster::kernels
