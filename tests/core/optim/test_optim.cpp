#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/models/layers.h"
#include "core/optim/adamw.h"
#include "core/optim/schedule.h"
#include "tests/helpers/parameters.h"
#include "tests/helpers/rounding.h"

namespace muster::optim {
namespace {

double norm_of(const at::Tensor& flat) { return l2_norm(flat).item<double>(); }

using models::DecayScope;
using models::Parameters;
using Rates = std::vector<double>;

config::Optimizer options(config::Optimizer::Schedule schedule, uint32_t warmup) {
  config::Optimizer optimizer;
  optimizer.set_learning_rate(2);
  optimizer.set_schedule(schedule);
  optimizer.set_warmup_steps(warmup);
  optimizer.set_final_lr_ratio(0.1);
  optimizer.set_step_factor(0.5);
  optimizer.set_step_epochs(2);
  return optimizer;
}

Rates rates(const config::Optimizer& optimizer, uint64_t total, uint64_t per_epoch) {
  Rates all;
  for (uint64_t step = 0; step < total; ++step) all.push_back(learning_rate(optimizer, step, total, per_epoch));
  return all;
}

void expect_near(const Rates& actual, const Rates& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-12) << "step " << i;
}

TEST(Schedule, Constant) {
  expect_near(rates(options(config::Optimizer::CONSTANT, 0), 3, 1), {2, 2, 2});
  expect_near(rates(options(config::Optimizer::CONSTANT, 4), 6, 1), {0.5, 1, 1.5, 2, 2, 2});
  expect_near(rates(options(config::Optimizer::CONSTANT, 10), 2, 1), {0.2, 0.4});
}

TEST(Schedule, CosineEndsAtItsFinalRatio) {
  const auto cosine = [](double progress) { return 2 * (0.1 + 0.9 * (1 + std::cos(M_PI * progress)) / 2); };
  expect_near(rates(options(config::Optimizer::COSINE, 0), 5, 1), {2, cosine(0.25), 1.1, cosine(0.75), 0.2});
  expect_near(rates(options(config::Optimizer::COSINE, 2), 7, 1), {1, 2, 2, cosine(0.25), 1.1, cosine(0.75), 0.2});
  expect_near(rates(options(config::Optimizer::COSINE, 0), 1, 1), {2});
  expect_near(rates(options(config::Optimizer::COSINE, 3), 4, 1), {2 / 3.0, 4 / 3.0, 2, 2});
  expect_near(rates(options(config::Optimizer::COSINE, 9), 3, 1), {2 / 9.0, 4 / 9.0, 6 / 9.0});
  // Beyond the end it stays at the end.
  EXPECT_NEAR(learning_rate(options(config::Optimizer::COSINE, 0), 100, 5, 1), 0.2, 1e-12);
}

TEST(Schedule, StepFallsByEpochs) {
  expect_near(rates(options(config::Optimizer::STEP, 0), 14, 3), {2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0.5, 0.5});
  expect_near(rates(options(config::Optimizer::STEP, 2), 8, 3), {1, 2, 2, 2, 2, 2, 1, 1});
}

TEST(L2Norm, OfTenMillionFloats) {
  at::manual_seed(1);
  const at::Tensor values = at::randn({10000019}) * 1e-3;
  const double reference = values.to(at::kDouble).pow(2).sum().sqrt().item<double>();
  EXPECT_NEAR(norm_of(values) / reference, 1, 1e-12);
  EXPECT_NEAR(norm_of(values.to(at::kDouble)) / reference, 1, 1e-12);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const double one = norm_of(values);
  at::set_num_threads(3);
  EXPECT_EQ(norm_of(values), one) << "the number of threads changed the bits";
  at::set_num_threads(threads);
}

TEST(L2Norm, OfEdgeCases) {
  EXPECT_EQ(norm_of(at::zeros({0})), 0);
  EXPECT_EQ(norm_of(at::full({1}, -3.0f)), 3);
  // The square of this overflows float32.
  EXPECT_NEAR(norm_of(at::full({4}, 1e30f)) / 2e30, 1, 1e-6);
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    for (const int64_t place : {0, 40000, 99999}) {
      at::Tensor values = at::ones({100000});
      values[place] = bad;
      EXPECT_FALSE(std::isfinite(norm_of(values))) << place;
    }
}

std::vector<models::ParameterSpec> specs() {
  std::vector<models::ParameterSpec> specs;
  models::add_linear(specs, "a", 37, 53, models::Initial::normal(1));
  models::add_linear(specs, "b", 1, 3, models::Initial::normal(1));
  models::add_linear(specs, "c", 16, 48, models::Initial::normal(1));
  models::add_layer_norm(specs, "norm", 17);
  specs.push_back({"temperature", {}, models::Initial::constant(2.7)});
  return specs;
}

TEST(ClipGradients, FollowsClipGradNorm) {
  for (const double max_norm : {0.0, 0.5, 1e9}) {
    Parameters parameters(specs(), DecayScope::kMatrices, at::kDouble, 1);
    at::manual_seed(1);
    at::Tensor squares = at::zeros({}, at::kDouble);
    for (const auto& spec : parameters.specs()) {
      parameters[spec.name].grad().copy_(at::randn(spec.shape, at::kDouble));
      squares += parameters[spec.name].grad().pow(2).sum();
    }
    const at::Tensor before = parameters.gradients().clone();
    const double norm = norm_of(parameters.gradients());
    EXPECT_NEAR(norm, squares.sqrt().item<double>(), 1e-10);
    clip_gradients(parameters, at::scalar_tensor(norm, at::kDouble), max_norm);
    if (max_norm == 0.5) {
      EXPECT_TRUE(at::allclose(parameters.gradients(), before * (0.5 / (norm + 1e-6)), 1e-14, 0));
      EXPECT_NEAR(norm_of(parameters.gradients()), 0.5, 1e-6);
    } else {
      EXPECT_TRUE(parameters.gradients().equal(before));
    }
  }
}

TEST(AdamW, EqualsPyTorchPerParameter) {
  for (const auto scope : {DecayScope::kMatrices, DecayScope::kAll})
    for (const auto dtype : {at::kFloat, at::kDouble}) {
      const at::NoGradGuard no_gradient;
      at::manual_seed(1);
      Parameters parameters(specs(), scope, dtype, 1);
      AdamW optimizer(parameters, {0.8, 0.95, 1e-7, 0.3});
      struct Single {
        at::Tensor value, first, second, steps;
      };
      std::map<std::string, Single> singles;
      for (const auto& [name, value] : copies_of(parameters))
        singles[name] = {value, at::zeros_like(value), at::zeros_like(value), at::zeros({}, at::kFloat)};
      for (int step = 0; step < 25; ++step) {
        const double rate = 0.1 / (step + 1);
        for (auto& [name, single] : singles) {
          const at::Tensor gradient = at::randn(single.value.sizes(), single.value.options());
          parameters[name].grad().copy_(gradient);
          single.steps.add_(1);
          const double decay = scope == DecayScope::kAll || single.value.dim() >= 2 ? 0.3 : 0;
          std::vector<at::Tensor> value{single.value}, first{single.first}, second{single.second};
          at::_fused_adamw_(value, {gradient}, first, second, {}, {single.steps}, rate, 0.8, 0.95, decay, 1e-7, false,
                            false);
        }
        optimizer.step(rate);
      }
      int64_t bitwise = 0;
      for (const auto& [name, single] : singles) {
        // PyTorch computes what is left over after the last whole vector by scalar code that rounds differently; the
        // flat buffer has no such rest, so the bits agree only for a parameter without one.
        const bool whole_vectors = single.value.numel() % (64 / single.value.element_size()) == 0;
        bitwise += whole_vectors;
        const double difference = (parameters[name] - single.value).abs().max().item<double>();
        // Of a rest each of the 25 steps rounds by half an eps, here and there.
        const double size = std::max(1.0, single.value.abs().max().item<double>());
        EXPECT_LE(difference, whole_vectors ? 0 : 25 * eps_of(dtype) * size) << name;
      }
      EXPECT_GE(bitwise, 2);
    }
}

// Loshchilov and Hutter's update, written out.
TEST(AdamW, EqualsTheEquation) {
  std::vector<models::ParameterSpec> two;
  models::add_linear(two, "a", 1, 1, models::Initial::constant(0.7));
  Parameters parameters(two, DecayScope::kMatrices, at::kDouble, 1);
  const at::NoGradGuard no_gradient;
  for (const std::string name : {"a.weight", "a.bias"}) {
    SCOPED_TRACE(name);
    parameters.values().fill_(0.7);
    AdamW fresh(parameters, {0.9, 0.99, 1e-8, 0.1});
    double x = 0.7, m = 0, v = 0;
    for (int t = 1; t <= 10; ++t) {
      const double g = std::sin(t);
      parameters.gradients().fill_(g);
      fresh.step(0.05);
      x -= 0.05 * (name == "a.weight" ? 0.1 : 0) * x;
      m = 0.9 * m + 0.1 * g;
      v = 0.99 * v + 0.01 * g * g;
      x -= 0.05 * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.99, t))) + 1e-8);
      EXPECT_NEAR(parameters[name].item<double>(), x, 1e-12);
    }
  }
}

TEST(AdamW, ASkippedStepNeverWas) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    Parameters parameters(specs(), DecayScope::kMatrices, dtype, 1), without(specs(), DecayScope::kMatrices, dtype, 1);
    AdamW optimizer(parameters, {}), expected(without, {});
    const at::Tensor keep = at::scalar_tensor(0.0f, at::kFloat), skip = at::scalar_tensor(1.0f, at::kFloat);
    for (int step = 0; step < 6; ++step) {
      at::manual_seed(step);
      parameters.gradients().copy_(at::randn_like(parameters.gradients()));
      without.gradients().copy_(parameters.gradients());
      if (step == 2 || step == 3) {
        const at::Tensor before = parameters.values().clone();
        parameters.gradients().fill_(std::numeric_limits<double>::quiet_NaN());
        optimizer.step(0.1, skip);
        EXPECT_TRUE(parameters.values().equal(before));
      } else {
        optimizer.step(0.1, keep);
        expected.step(0.1);
      }
    }
    EXPECT_TRUE(parameters.values().equal(without.values())) << "moments or the step count have moved";
  }
}

TEST(AdamW, GapsStayZero) {
  Parameters parameters(specs(), DecayScope::kMatrices, at::kFloat, 1);
  AdamW optimizer(parameters, {});
  const at::NoGradGuard no_gradient;
  at::Tensor used = parameters.values().ne(0);
  for (const auto& spec : parameters.specs()) parameters[spec.name].grad().fill_(1);
  const at::Tensor gaps = parameters.gradients().eq(0);
  for (int step = 0; step < 5; ++step) optimizer.step(0.1);
  EXPECT_GT(gaps.sum().item<int64_t>(), 0);
  EXPECT_TRUE(parameters.values().masked_select(gaps).eq(0).all().item<bool>());
  EXPECT_FALSE(parameters.values().masked_select(used).eq(0).any().item<bool>());
}

}  // namespace
}  // namespace muster::optim
