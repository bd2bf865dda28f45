// Names, shapes, counts and starting values of both models against tables written from the equations, not from the
// code.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "core/models/foal_net.h"
#include "core/models/make_model.h"
#include "core/models/miar.h"
#include "tests/core/models/defaults.h"
#include "tests/helpers/parameters.h"

namespace muster::models {
namespace {

using Shapes = std::map<std::string, std::vector<int64_t>>;

Shapes shapes_of(const Parameters& parameters) {
  Shapes shapes;
  for (const auto& [name, tensor] : copies_of(parameters)) shapes[name] = tensor.sizes().vec();
  return shapes;
}

FoalNet foal_net(const std::string& fields = "", at::ScalarType dtype = at::kFloat, uint64_t seed = 1,
                 FoalNet::Sizes sizes = {1024, 768, 4}) {
  return FoalNet(defaults("foal_net {" + fields + "}").foal_net(), sizes, DecayScope::kMatrices, dtype, seed);
}

Miar miar(std::vector<int64_t> dims, const std::string& fields = "", at::ScalarType dtype = at::kFloat) {
  return Miar(defaults("miar {" + fields + "}").miar(), {{"text", "audio", "vision"}, dims, 1}, DecayScope::kMatrices,
              dtype, 1);
}

void add_affine(Shapes& shapes, const std::string& name, int64_t out, int64_t in) {
  shapes[name + ".weight"] = {out, in};
  shapes[name + ".bias"] = {out};
}

void add_norm(Shapes& shapes, const std::string& name, int64_t width) {
  shapes[name + ".weight"] = {width};
  shapes[name + ".bias"] = {width};
}

// Largest distance between the values' distribution and `cdf` (Kolmogorov and Smirnov), in units of its 0.1 % critical
// value.
template <typename Cdf>
double distance(const at::Tensor& values, Cdf cdf) {
  const at::Tensor sorted = std::get<0>(values.to(at::kDouble).flatten().sort());
  const double* x = sorted.const_data_ptr<double>();
  const double n = static_cast<double>(sorted.numel());
  double largest = 0;
  for (int64_t i = 0; i < sorted.numel(); ++i)
    largest = std::max({largest, std::abs(cdf(x[i]) - static_cast<double>(i) / n),
                        std::abs(cdf(x[i]) - static_cast<double>(i + 1) / n)});
  return largest * std::sqrt(n) / 1.95;
}

double normal_distance(const at::Tensor& values, double deviation) {
  return distance(values, [&](double x) { return 0.5 * std::erfc(-x / deviation / std::sqrt(2.0)); });
}

double uniform_distance(const at::Tensor& values, double bound) {
  return distance(values, [&](double x) { return std::clamp(0.5 + 0.5 * x / bound, 0.0, 1.0); });
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

TEST(FoalNetShapes, ArePublished) {
  Shapes expected{{"avel.audio.input.weight", {512, 1024}},
                  {"avel.audio.hidden.weight", {512, 512}},
                  {"avel.video.input.weight", {512, 768}},
                  {"avel.video.hidden.weight", {512, 512}},
                  {"avel.temperature", {}}};
  add_norm(expected, "avel.audio.norm", 512);
  add_norm(expected, "avel.video.norm", 512);
  for (const std::string layer : {"0", "1"}) {
    const std::string a = "fusion.audio_attends_video." + layer, v = "fusion.video_attends_audio." + layer;
    add_affine(expected, a + ".query", 1024, 1024);
    add_affine(expected, a + ".output", 1024, 1024);
    add_affine(expected, a + ".key_value", 2048, 768);
    add_norm(expected, a + ".norm", 1024);
    add_affine(expected, v + ".query", 768, 768);
    add_affine(expected, v + ".output", 768, 768);
    add_affine(expected, v + ".key_value", 1536, 1024);
    add_norm(expected, v + ".norm", 768);
  }
  add_affine(expected, "mem.audio_head", 2, 1024);
  add_affine(expected, "mem.video_head", 2, 768);
  add_affine(expected, "classifier", 4, 1792);

  const auto model = foal_net();
  EXPECT_EQ(model.parameters().count(), 14321161);
  EXPECT_EQ(shapes_of(model.parameters()), expected);

  expected.erase("avel.temperature");
  EXPECT_EQ(shapes_of(foal_net("temperature_mode: FIXED_TEMPERATURE").parameters()), expected);
}

TEST(FoalNetShapes, OfTheAdapter) {
  const auto plain = shapes_of(foal_net("projection_dim: 8 layers: 1", at::kFloat, 1, {12, 8, 3}).parameters());
  auto expected = plain;
  add_affine(expected, "adapter.audio.input", 5, 12);
  add_affine(expected, "adapter.audio.output", 12, 5);
  add_norm(expected, "adapter.audio.norm", 12);
  add_affine(expected, "adapter.video.input", 5, 8);
  add_affine(expected, "adapter.video.output", 8, 5);
  add_norm(expected, "adapter.video.norm", 8);
  const auto model = foal_net("projection_dim: 8 layers: 1 adapter_dim: 5", at::kFloat, 1, {12, 8, 3});
  EXPECT_EQ(shapes_of(model.parameters()), expected);
  // An adapter starts as the layer norm of its input.
  EXPECT_TRUE(model.parameters()["adapter.audio.output.weight"].eq(0).all().item<bool>());
  EXPECT_LT(normal_distance(model.parameters()["adapter.audio.input.weight"].detach(), 0.02), 1);
}

TEST(FoalNetShapes, OfAWidthOfItsOwn) {
  const std::string fields = "projection_dim: 8 layers: 1 adapter_dim: 5";
  auto expected = shapes_of(foal_net(fields, at::kFloat, 1, {12, 12, 3}).parameters());
  add_affine(expected, "adapter.audio.projection", 12, 74);
  add_affine(expected, "adapter.video.projection", 12, 36);
  const auto model = foal_net(fields + " adapter_output_dim: 12", at::kFloat, 1, {74, 36, 3});
  EXPECT_EQ(shapes_of(model.parameters()), expected);
  EXPECT_LT(uniform_distance(model.parameters()["adapter.audio.projection.weight"].detach(), std::sqrt(6.0 / 86)), 1);
  EXPECT_TRUE(model.parameters()["adapter.audio.projection.bias"].eq(0).all().item<bool>());
}

TEST(FoalNetStart, IsThatOfTheAuthors) {
  const auto model = foal_net();
  for (const auto& [name, value] : copies_of(model.parameters())) {
    if (name == "avel.temperature") {
      EXPECT_NEAR(value.item<double>(), 2.6592600, 1e-6);
    } else if (value.dim() == 2 && value.numel() > 100) {
      EXPECT_LT(normal_distance(value, 0.02), 1) << name;
    } else if (ends_with(name, "norm.weight")) {
      EXPECT_TRUE(value.eq(1).all().item<bool>()) << name;
    } else if (value.dim() == 1) {
      EXPECT_TRUE(value.eq(0).all().item<bool>()) << name;
    }
  }
  EXPECT_NEAR(
      foal_net("temperature_mode: RAW_DIVISOR projection_dim: 4").parameters()["avel.temperature"].item<double>(),
      2.6592600, 1e-6);
  EXPECT_NEAR(
      foal_net("temperature_mode: CLAMPED_DIVISOR projection_dim: 4").parameters()["avel.temperature"].item<double>(),
      0.07, 1e-8);
}

TEST(FoalNetStart, HeadsMustDivideWidths) {
  const auto message = [](const std::string& fields, const std::vector<int64_t>& dims) -> std::string {
    try {
      make_model(defaults("foal_net {" + fields + "}"),
                 {{"audio", "vision"}, dims, 4, {}, data::Task::kClassification});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadConfig);
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message("heads: 3", {12, 8}),
              testing::HasSubstr("\n  foal_net.heads: 3 heads cannot share features of width 8 (vision) evenly; set "
                                 "heads to 1, 2 or 4, which divide 12 and 8, or set foal_net.adapter_output_dim to a "
                                 "multiple of 3, e.g. 129"));
  EXPECT_THAT(message("", {74, 36}),
              testing::HasSubstr("4 heads cannot share features of width 74 (audio) evenly; set heads to 1 or 2, which "
                                 "divide 74 and 36, or set foal_net.adapter_output_dim to a multiple of 4, e.g. 128"));
  EXPECT_THAT(message("", {74, 35}),
              testing::HasSubstr("width 74 (audio) and 35 (vision) evenly; set heads to 1, which "
                                 "divides 74 and 35, or"));
  EXPECT_EQ(message("projection_dim: 8 adapter_output_dim: 8", {74, 35}), "");
}

TEST(MiarShapes, HaveTheStatedCounts) {
  EXPECT_EQ(miar({768, 5, 20}).parameters().count(), 1872513);
  EXPECT_EQ(miar({768, 74, 35}).parameters().count(), 1883265);
  EXPECT_EQ(miar({768, 33, 709}).parameters().count(), 1964289);
}

TEST(MiarShapes, AreThoseOfTheEquations) {
  const int64_t d = 8, f = 12, p = 6;
  Shapes expected{{"gate.weight", {1, d}}};
  const std::vector<std::pair<std::string, int64_t>> modalities{{"text", 7}, {"audio", 3}, {"vision", 5}};
  for (const auto& [m, width] : modalities) {
    add_affine(expected, "encoder." + m + ".input", d, width);
    add_norm(expected, "encoder." + m + ".norm", d);
    add_affine(expected, "alignment." + m + ".projection.input", d, d);
    add_affine(expected, "alignment." + m + ".projection.output", p, d);
    add_norm(expected, "alignment." + m + ".norm", p);
  }
  for (const std::string k : {"text", "audio", "vision", "joint"}) {
    expected["token." + k] = {d};
    add_norm(expected, "token_norm." + k, d);
    for (const std::string l : {"0", "1"}) {
      const std::string block = "layers." + l + "." + k;
      add_norm(expected, block + ".attention_norm", d);
      add_affine(expected, block + ".attention.query", d, d);
      add_affine(expected, block + ".attention.output", d, d);
      add_affine(expected, block + ".attention.key_value", 2 * d, d);
      add_norm(expected, block + ".ffn_norm", d);
      add_affine(expected, block + ".ffn.input", f, d);
      add_affine(expected, block + ".ffn.output", d, f);
    }
  }
  add_affine(expected, "head.input", d, 5 * d);
  add_affine(expected, "head.output", 1, d);
  EXPECT_EQ(shapes_of(miar({7, 3, 5}, "dim: 8 heads: 2 ffn_dim: 12 alignment_dim: 6").parameters()), expected);
}

TEST(MiarStart, IsXavierUniform) {
  const auto model = miar({768, 5, 20});
  for (const auto& [name, value] : copies_of(model.parameters())) {
    if (name == "gate.weight" || ends_with(name, ".bias")) {
      EXPECT_TRUE(value.eq(0).all().item<bool>()) << name;
    } else if (name.rfind("token.", 0) == 0) {
      EXPECT_LT(normal_distance(value, 0.02), 1) << name;
    } else if (value.dim() == 2) {
      // Keys and values are two square maps, each with its own fans.
      const double fans =
          ends_with(name, "key_value.weight") ? 256.0 : static_cast<double>(value.size(0) + value.size(1));
      const double bound = std::sqrt(6 / fans);
      EXPECT_LE(value.abs().max().item<double>(), bound * (1 + 1e-7)) << name;
      EXPECT_LT(uniform_distance(value, bound), 1) << name;
    } else {
      EXPECT_TRUE(value.eq(1).all().item<bool>()) << name;
    }
  }
}

TEST(Start, HangsOnSeedAndNameOnly) {
  const FoalNet::Sizes sizes{12, 8, 4};
  const auto one = foal_net("projection_dim: 16 layers: 1", at::kDouble, 7, sizes);
  const auto three = foal_net("projection_dim: 16 layers: 3 adapter_dim: 4 temperature_mode: FIXED_TEMPERATURE",
                              at::kDouble, 7, sizes);
  const auto other_seed = foal_net("projection_dim: 16 layers: 1", at::kDouble, 8, sizes);
  const auto single = foal_net("projection_dim: 16 layers: 1", at::kFloat, 7, sizes);
  for (const auto& [name, value] : copies_of(one.parameters())) {
    // float32 is float64 rounded once.
    EXPECT_TRUE(single.parameters()[name].equal(value.to(at::kFloat))) << name;
    if (name != "avel.temperature") {
      EXPECT_TRUE(three.parameters()[name].equal(value)) << name;
    }
    if (value.dim() == 2) {
      EXPECT_FALSE(other_seed.parameters()[name].isclose(value).any().item<bool>()) << name;
    }
  }
  // Same shape, other name: other numbers.
  EXPECT_FALSE(three.parameters()["fusion.audio_attends_video.0.query.weight"]
                   .isclose(three.parameters()["fusion.audio_attends_video.1.query.weight"])
                   .any()
                   .item<bool>());
}

}  // namespace
}  // namespace muster::models
