#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "core/models/layers.h"
#include "core/models/parameters.h"
#include "tests/helpers/parameters.h"

namespace muster::models {
namespace {

using ::testing::HasSubstr;

std::vector<ParameterSpec> some_specs() {
  std::vector<ParameterSpec> specs;
  add_linear(specs, "head", 3, 5, Initial::normal(0.5));
  add_key_value(specs, "attention", 4, 7, Initial::xavier_uniform(7, 4));
  add_layer_norm(specs, "norm", 9);
  specs.push_back({"scale", {}, Initial::constant(2.5)});
  return specs;
}

// Where weight decay ends: without encoders, what decays comes first.
int64_t decayed_end(const Parameters& parameters) {
  const auto& first = parameters.groups().front();
  return first.decayed ? first.end : first.begin;
}

TEST(Parameters, LieInTwoFlatBuffers) {
  for (const auto dtype : {at::kFloat, at::kDouble})
    for (const auto decay : {DecayScope::kMatrices, DecayScope::kAll}) {
      Parameters parameters(some_specs(), decay, dtype, 1);
      EXPECT_EQ(parameters.count(), 15 + 3 + 56 + 8 + 9 + 9 + 1);
      EXPECT_EQ(parameters.dtype(), dtype);
      const at::Tensor values = parameters.values(), gradients = parameters.gradients();
      ASSERT_EQ(values.sizes(), gradients.sizes());
      const auto address = [](const at::Tensor& t) { return static_cast<const char*>(t.data_ptr()); };
      at::Tensor covered = at::zeros(values.sizes(), at::kBool);
      for (const auto& spec : parameters.specs()) {
        const at::Tensor& leaf = parameters[spec.name];
        EXPECT_TRUE(leaf.is_leaf() && leaf.requires_grad()) << spec.name;
        const int64_t bytes = address(leaf) - address(values);
        EXPECT_EQ(bytes % 64, 0) << spec.name;
        EXPECT_EQ(address(leaf.grad()) - address(gradients), bytes) << spec.name;
        const int64_t start = bytes / static_cast<int64_t>(values.element_size());
        EXPECT_FALSE(covered.narrow(0, start, leaf.numel()).any().item<bool>()) << spec.name << " overlaps another";
        covered.narrow(0, start, leaf.numel()).fill_(true);
        const bool decays = decay == DecayScope::kAll || leaf.dim() >= 2;
        EXPECT_EQ(start + leaf.numel() <= decayed_end(parameters), decays) << spec.name;
        EXPECT_EQ(start >= decayed_end(parameters), !decays) << spec.name;
      }
      EXPECT_TRUE(values.masked_select(covered.logical_not()).eq(0).all().item<bool>()) << "gaps are not 0";
    }
}

TEST(Parameters, GradientsAccumulateInPlace) {
  Parameters parameters(some_specs(), DecayScope::kMatrices, at::kDouble, 1);
  const at::Tensor x = at::randn({4, 5}, at::kDouble);
  for (int pass = 0; pass < 2; ++pass) linear(parameters, "head", x).sum().backward();
  EXPECT_TRUE(at::allclose(parameters["head.bias"].grad(), at::full({3}, 8.0, at::kDouble)));
  EXPECT_TRUE(at::allclose(parameters["head.weight"].grad(), 2 * x.sum(0).expand({3, 5})));
  EXPECT_NEAR(parameters.gradients().sum().item<double>(), 24 + 6 * x.sum().item<double>(), 1e-12);
  parameters.finish_gradients();
  parameters.zero_gradients();
  EXPECT_TRUE(parameters.gradients().eq(0).all().item<bool>());
}

TEST(Parameters, KeyBiasGradientIsZero) {
  Parameters parameters(some_specs(), DecayScope::kMatrices, at::kDouble, 1);
  parameters.gradients().fill_(3);
  parameters.finish_gradients();
  const at::Tensor gradient = parameters["attention.bias"].grad();
  EXPECT_TRUE(gradient.narrow(0, 0, 4).eq(0).all().item<bool>());
  EXPECT_TRUE(gradient.narrow(0, 4, 4).eq(3).all().item<bool>());
  EXPECT_TRUE(parameters["attention.weight"].grad().eq(3).all().item<bool>());
}

TEST(Parameters, AReplacedGradientIsADefect) {
  Parameters parameters(some_specs(), DecayScope::kMatrices, at::kDouble, 1);
  at::Tensor(parameters["head.bias"]).mutable_grad() = at::zeros({3}, at::kDouble);
  EXPECT_THROW(parameters.finish_gradients(), Error);
}

TEST(Parameters, DuplicateAndUnknownNames) {
  auto specs = some_specs();
  specs.push_back({"scale", {2}, Initial::constant(0)});
  EXPECT_THROW(Parameters(specs, DecayScope::kAll, at::kFloat, 1), Error);
  const Parameters parameters(some_specs(), DecayScope::kAll, at::kFloat, 1);
  EXPECT_THROW(parameters["head"], Error);
}

TEST(Parameters, StateIsASortedCopy) {
  Parameters parameters(some_specs(), DecayScope::kMatrices, at::kFloat, 1);
  auto state = copies_of(parameters);
  EXPECT_TRUE(
      std::is_sorted(state.begin(), state.end(), [](const auto& a, const auto& b) { return a.first < b.first; }));
  state[0].second.fill_(100);
  EXPECT_LT(parameters.values().max().item<double>(), 50);
}

// An encoder's parameters come last, by learning rate; those that are not trained have no place, gradient or moment.
TEST(Parameters, AreGroupedByWhatTheOptimizerDoesWithThem) {
  auto specs = some_specs();
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, bool trained, double scale) {
    ParameterSpec spec{name, std::move(shape), Initial::normal(1)};
    spec.in_encoder = true;
    spec.trained = trained;
    spec.learning_rate_scale = scale;
    specs.push_back(spec);
  };
  add("a.slow", {2, 3}, true, 0.25);
  add("a.fast", {2, 3}, true, 0.5);
  add("a.bias", {3}, true, 0.5);
  add("a.frozen", {40, 3}, false, 1);
  Parameters parameters(specs, DecayScope::kMatrices, at::kDouble, 1);
  const Parameters without(some_specs(), DecayScope::kMatrices, at::kDouble, 1);
  EXPECT_EQ(parameters.encoders_begin(), without.values().numel());
  EXPECT_TRUE(parameters.values().narrow(0, 0, parameters.encoders_begin()).equal(without.values()));
  std::vector<std::tuple<int64_t, bool, double>> groups;
  int64_t end = 0;
  for (const auto& group : parameters.groups()) {
    EXPECT_EQ(group.begin, end);
    end = group.end;
    groups.push_back({group.begin, group.decayed, group.learning_rate_scale});
  }
  EXPECT_EQ(end, parameters.values().numel());
  const int64_t encoders = parameters.encoders_begin();
  EXPECT_THAT(groups, ::testing::ElementsAre(std::tuple(0, true, 1.0), std::tuple(decayed_end(without), false, 1.0),
                                             std::tuple(encoders, true, 0.5), std::tuple(encoders + 8, false, 0.5),
                                             std::tuple(encoders + 16, true, 0.25)));
  EXPECT_EQ(parameters.count(), parameters.trained_count() + 120);
  EXPECT_FALSE(parameters["a.frozen"].requires_grad());
  EXPECT_EQ(parameters.parts_of(parameters.values()).size(), specs.size() - 1);
  EXPECT_EQ(parameters.all_parts(parameters.values()).size(), specs.size());
  const Parameters source(specs, DecayScope::kMatrices, at::kDouble, 2);
  const auto state = source.all_parts(source.values());
  parameters.load({state.begin(), state.end()}, "file");
  EXPECT_TRUE(parameters.values().equal(source.values()));
  EXPECT_TRUE(parameters["a.frozen"].equal(source["a.frozen"]));
}

TEST(Parameters, LoadConvertsAndRoundTrips) {
  const Parameters source(some_specs(), DecayScope::kMatrices, at::kDouble, 1);
  const auto state = copies_of(source);
  Parameters target(some_specs(), DecayScope::kAll, at::kFloat, 2);
  target.load({state.begin(), state.end()}, "file");
  for (const auto& [name, value] : state) EXPECT_TRUE(target[name].equal(value.to(at::kFloat))) << name;
  EXPECT_EQ(target["head.weight"].data_ptr(),
            target.values().narrow(0, 0, 1).data_ptr<float>() +
                (target["head.weight"].data_ptr<float>() - target.values().data_ptr<float>()));
  EXPECT_TRUE(target.values().narrow(0, 0, decayed_end(target)).equal(target.values()));
}

TEST(Parameters, LoadListsEveryDifferenceAndChangesNothing) {
  Parameters parameters(some_specs(), DecayScope::kMatrices, at::kFloat, 1);
  const at::Tensor before = parameters.values().clone();
  const auto state = copies_of(Parameters(some_specs(), DecayScope::kMatrices, at::kFloat, 2));
  std::map<std::string, at::Tensor> bad{state.begin(), state.end()};
  bad.erase("head.bias");
  bad["norm.weight"] = at::zeros({8});
  bad["scale"] = at::zeros({}, at::kLong);
  bad["heads.bias"] = at::zeros({3});
  bad["extra"] = at::zeros({1, 2});
  try {
    parameters.load(bad, "some.safetensors");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    for (const char* part : {"some.safetensors", "missing: head.bias [3]", "norm.weight is [8], the model needs [9]",
                             "scale", "not in the model: heads.bias [3]", "not in the model: extra [1, 2]"})
      EXPECT_THAT(error.what(), HasSubstr(part));
  }
  EXPECT_TRUE(parameters.values().equal(before));
}

}  // namespace
}  // namespace muster::models
