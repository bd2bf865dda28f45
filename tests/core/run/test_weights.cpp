#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "checkpoints/safetensors.h"
#include "core/models/layers.h"
#include "core/run/weights.h"
#include "tests/helpers/temporary_folder.h"

namespace muster::run {
namespace {

using ::testing::HasSubstr;

models::Parameters parameters(at::ScalarType dtype, uint64_t seed) {
  std::vector<models::ParameterSpec> specs;
  models::add_linear(specs, "head", 3, 5, models::Initial::normal(0.5));
  specs.push_back({"temperature", {}, models::Initial::normal(1)});
  return models::Parameters(specs, models::DecayScope::kMatrices, dtype, seed);
}

batch::FeatureMoments moments(int64_t dim) { return {at::randn({dim}, at::kDouble), at::rand({dim}, at::kDouble)}; }

data::DatasetIndex classes(std::vector<std::string> names) {
  data::DatasetIndex index;
  index.task = data::Task::kClassification;
  index.class_names = std::move(names);
  return index;
}

std::string write(const std::string& path, const models::Parameters& parameters,
                  const std::vector<batch::FeatureMoments>& fitted,
                  const std::map<std::string, std::string>& metadata) {
  return write_weights(path, weight_tensors(parameters.parts_of(parameters.values()), fitted, {"audio", "vision"}),
                       metadata);
}

template <typename Function>
std::string error_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    return error.what();
  }
  return "no error";
}

TEST(Weights, WaveformsAndTokensAreNotStandardized) {
  const TemporaryFolder folder;
  const auto source = parameters(at::kFloat, 1);
  auto index = classes({"hap", "neu"});
  index.modalities.resize(2);
  index.modalities[0].name = "audio";
  index.modalities[0].dim = 1;
  index.modalities[0].kind = data::ModalityKind::kWaveform;
  index.modalities[1].name = "vision";
  index.modalities[1].dim = 2;
  // Width 7 is that of the encoder, which the data do not know.
  models::DataShape shape{
      {"audio", "vision"}, {7, 2}, 2, {data::ModalityKind::kWaveform, data::ModalityKind::kFeatures}};
  for (const bool features_too : {true, false}) {
    index.modalities[1].kind = shape.kinds[1] =
        features_too ? data::ModalityKind::kFeatures : data::ModalityKind::kTokens;
    const auto fitted = features_too ? moments(2) : batch::no_moments();
    write(folder / "w.safetensors", source, {batch::no_moments(), fitted}, weights_metadata("x", 1, index));
    const auto weights = read_weights(folder / "w.safetensors", shape);
    ASSERT_EQ(weights.moments.size(), 2u);
    EXPECT_EQ(weights.moments[0].mean.numel(), 0);
    EXPECT_TRUE(weights.moments[1].mean.equal(fitted.mean));
    EXPECT_TRUE(weights.moments[1].standard_deviation.equal(fitted.standard_deviation));
    auto target = parameters(at::kFloat, 2);
    EXPECT_NO_THROW(load_weights(weights, "w", index, true, target));
    EXPECT_THAT(error_of([&] { load_weights(weights, "w", index, false, target); }), HasSubstr("data.standardize"));
  }
  // A file that says the contrary of features.
  shape.kinds[1] = data::ModalityKind::kFeatures;
  EXPECT_THAT(error_of([&] { read_weights(folder / "w.safetensors", shape); }),
              HasSubstr("the standardization of modality \"vision\""));
  index.modalities[1].kind = data::ModalityKind::kFeatures;
  write(folder / "w.safetensors", source, {batch::no_moments(), moments(2)}, weights_metadata("x", 1, index));
  shape.dims[1] = 3;
  EXPECT_THAT(error_of([&] { read_weights(folder / "w.safetensors", shape); }), HasSubstr("has 3 features here"));
}

TEST(Weights, RoundTrip) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const TemporaryFolder folder;
    const auto source = parameters(dtype, 1);
    const std::vector<batch::FeatureMoments> fitted{moments(4), moments(2)};
    const auto index = classes({"hap", "neu", "s\"ad\u00e9"});
    const auto metadata = weights_metadata("name", 120, index);
    EXPECT_EQ(metadata.at("step"), "120");
    const std::string first = write(folder / "w.safetensors", source, fitted, metadata);
    EXPECT_EQ(first, write(folder / "again.safetensors", source, fitted, {}));
    EXPECT_NE(first, write(folder / "other.safetensors", parameters(dtype, 2), fitted, metadata));

    const auto read = read_weights(folder / "w.safetensors", {{"audio", "vision"}, {4, 2}, 3});
    EXPECT_EQ(read.metadata, metadata);
    ASSERT_EQ(read.moments.size(), 2u);
    for (int m = 0; m < 2; ++m) {
      EXPECT_TRUE(read.moments[m].mean.equal(fitted[m].mean));
      EXPECT_TRUE(read.moments[m].standard_deviation.equal(fitted[m].standard_deviation));
    }
    auto target = parameters(dtype, 3);
    load_weights(read, "w", index, true, target);
    EXPECT_TRUE(target.values().equal(source.values()));
  }
}

TEST(Weights, OfAnotherOrderOfModalities) {
  const TemporaryFolder folder;
  const std::vector<batch::FeatureMoments> fitted{moments(4), moments(2)};
  write(folder / "w", parameters(at::kFloat, 1), fitted, {});
  const auto read = read_weights(folder / "w", {{"vision", "audio"}, {2, 4}, 3});
  EXPECT_TRUE(read.moments[0].mean.equal(fitted[1].mean));
}

TEST(Weights, MomentsThatDoNotFitAreRefused) {
  const TemporaryFolder folder;
  write(folder / "w", parameters(at::kFloat, 1), {moments(4), moments(2)}, {});
  EXPECT_THAT(error_of([&] {
                read_weights(folder / "w", {{"audio", "text"}, {4, 2}, 3});
              }),
              ::testing::AllOf(HasSubstr("\"text\""), HasSubstr("missing")));
  EXPECT_THAT(error_of([&] {
                read_weights(folder / "w", {{"audio", "vision"}, {4, 3}, 3});
              }),
              HasSubstr("modality 'vision' has 3 features here, but the weights were trained on 2"));
}

TEST(Weights, WithoutMoments) {
  const TemporaryFolder folder;
  write(folder / "w", parameters(at::kFloat, 1), {}, {});
  const auto read = read_weights(folder / "w", {{"audio", "vision"}, {4, 2}, 3});
  EXPECT_TRUE(read.moments.empty());
  EXPECT_EQ(read.parameters.size(), 3u);
  auto target = parameters(at::kFloat, 3);
  EXPECT_NO_THROW(load_weights(read, "w", classes({"a", "b"}), false, target));
  EXPECT_THAT(error_of([&] {
                load_weights(read, "w", classes({"a", "b"}), true, target);
              }),
              HasSubstr("data.standardize"));
}

TEST(Weights, OfOtherClassesAreRefused) {
  Weights weights;
  weights.metadata = weights_metadata("e", 1, classes({"hap", "sad"}));
  auto target = parameters(at::kFloat, 3);
  const at::Tensor before = target.values().clone();
  EXPECT_THAT(error_of([&] {
                load_weights(weights, "w.safetensors", classes({"sad", "hap"}), false, target);
              }),
              HasSubstr("w.safetensors"));
  EXPECT_NE(error_of([&] { load_weights(weights, "w", classes({"hap", "sad", "ang"}), false, target); }), "no error");
  EXPECT_TRUE(target.values().equal(before));
}

}  // namespace
}  // namespace muster::run
