// Linear maps against PyTorch's in float64, over numbers of rows that are parted into blocks in every way.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/kernels/linear.h"
#include "tests/helpers/rounding.h"

namespace muster::kernels {
namespace {

at::Tensor leaf_as(const at::Tensor& x, at::ScalarType dtype) { return x.to(dtype).clone().requires_grad_(); }

struct Results {
  at::Tensor y, x_gradient, weight_gradient, bias_gradient;
};

template <class Linear>
Results results_of(const Linear& linear, const at::Tensor& x, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias, const at::Tensor& cotangent, at::ScalarType dtype) {
  const at::Tensor a = leaf_as(x, dtype), w = leaf_as(weight, dtype);
  const auto b = bias ? std::optional<at::Tensor>(leaf_as(*bias, dtype)) : std::nullopt;
  const at::Tensor y = linear(a, w, b);
  (y * cotangent.to(dtype)).sum().backward();
  return {y.detach(), a.grad(), w.grad(), b ? b->grad() : at::Tensor()};
}

at::Tensor torch_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return at::linear(x, weight, bias);
}

}  // namespace

class Linear : public ::testing::TestWithParam<std::tuple<int64_t, std::pair<int64_t, int64_t>, bool>> {};

TEST_P(Linear, EqualsTorchInFloat64) {
  const auto& [rows, sizes, has_bias] = GetParam();
  at::manual_seed(1);
  const auto random = [](std::vector<int64_t> shape) {
    return at::randn(shape, at::kDouble).to(at::kFloat).to(at::kDouble);
  };
  const at::Tensor x = random({rows, sizes.first}), weight = random({sizes.second, sizes.first}),
                   cotangent = random({rows, sizes.second});
  const auto bias = has_bias ? std::optional<at::Tensor>(random({sizes.second})) : std::nullopt;
  const Results expected = results_of(torch_linear, x, weight, bias, cotangent, at::kDouble);
  const Results exact = results_of(kernels::linear, x, weight, bias, cotangent, at::kDouble);
  EXPECT_TRUE(at::equal(exact.y, expected.y) && at::equal(exact.weight_gradient, expected.weight_gradient));
  const Results actual = results_of(kernels::linear, x, weight, bias, cotangent, at::kFloat);
  const Results theirs = results_of(torch_linear, x, weight, bias, cotangent, at::kFloat);
  expect_as_exact_as_pytorch(actual.y, theirs.y, expected.y, 0, "y");
  expect_as_exact_as_pytorch(actual.x_gradient, theirs.x_gradient, expected.x_gradient, 0, "gradient of x");
  expect_as_exact_as_pytorch(actual.weight_gradient, theirs.weight_gradient, expected.weight_gradient, 0,
                             "gradient of the weight");
  if (has_bias) {
    expect_as_exact_as_pytorch(actual.bias_gradient, theirs.bias_gradient, expected.bias_gradient, 0,
                               "gradient of the bias");
    // Beside the sums of y a wrong bias could pass for rounding; of zeros it is all that is left.
    const at::Tensor alone =
        kernels::linear(at::zeros_like(x).to(at::kFloat), weight.to(at::kFloat), bias->to(at::kFloat));
    EXPECT_TRUE(at::equal(alone, bias->to(at::kFloat).expand_as(alone)));
  }
  const Results again = results_of(kernels::linear, x, weight, bias, cotangent, at::kFloat);
  EXPECT_TRUE(at::equal(actual.y, again.y) && at::equal(actual.x_gradient, again.x_gradient) &&
              at::equal(actual.weight_gradient, again.weight_gradient));

  at::globalContext().setDeterministicAlgorithms(true, false);
  const Results strict = results_of(kernels::linear, x, weight, bias, cotangent, at::kFloat),
                by_mkl = results_of(torch_linear, x, weight, bias, cotangent, at::kFloat);
  at::globalContext().setDeterministicAlgorithms(false, false);
  EXPECT_TRUE(at::equal(strict.y, by_mkl.y) && at::equal(strict.x_gradient, by_mkl.x_gradient) &&
              at::equal(strict.weight_gradient, by_mkl.weight_gradient));
}

// Of which rows lie in one block of 128, 256 or 512, in several, and beside them.
INSTANTIATE_TEST_SUITE_P(
    Sizes, Linear,
    ::testing::Combine(::testing::Values(1, 127, 128, 300, 512, 1100),
                       ::testing::Values(std::pair<int64_t, int64_t>{64, 64}, std::pair<int64_t, int64_t>{768, 64},
                                         std::pair<int64_t, int64_t>{64, 256}, std::pair<int64_t, int64_t>{20, 64}),
                       ::testing::Bool()));

TEST(LinearGradients, AreOnlyThoseAskedFor) {
  const at::Tensor x = at::randn({600, 768}), weight = at::randn({64, 768}).requires_grad_();
  kernels::linear(x, weight, std::nullopt).sum().backward();
  EXPECT_FALSE(x.grad().defined());
  EXPECT_TRUE(weight.grad().defined());
  const at::NoGradGuard no_gradient;
  EXPECT_FALSE(kernels::linear(x, weight, std::nullopt).requires_grad());
}

}  // namespace muster::kernels
