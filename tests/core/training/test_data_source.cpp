#include "core/training/data_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "core/config/load.h"
#include "core/training/frozen_features.h"
#include "tests/helpers/memory_dataset.h"

namespace muster::training {
namespace {

using ::testing::HasSubstr;

std::string error_of(const std::string& text) {
  try {
    open_training_data(config::resolve_experiment(text, "e.txtpb", {}, nullptr).experiment);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadConfig);
    return error.what();
  }
  return "no error";
}

const std::string kRaw = "data { synthetic { kind: CLASSIFICATION raw: true samples: 20 } } late_fusion {} ";

TEST(DataSource, RawModalitiesNeedEncoders) {
  const std::string message = error_of(kRaw);
  EXPECT_THAT(message, HasSubstr("data.modalities: \"audio\" is a waveform, which needs an encoder: add encoders { "
                                 "modality: \"audio\" path: ... }"));
  EXPECT_THAT(message, HasSubstr("data.modalities: \"text\" is of tokens, which needs an encoder"));
}

TEST(DataSource, EncodersNeedRawModalities) {
  const std::string features = "data { synthetic { kind: CLASSIFICATION samples: 20 } } late_fusion {} ";
  EXPECT_THAT(
      error_of(features + "encoders { modality: 'audio' path: 'x' }"),
      HasSubstr("encoders[0].modality: \"audio\" holds features in synthetic, and an encoder takes a waveform or "
                "tokens"));
  EXPECT_THAT(error_of(features + "encoders { modality: 'text' path: 'x' }"),
              HasSubstr("encoders[0].modality: \"text\" is not among the modalities that are used: \"audio\", "
                        "\"vision\""));
}

// Says what it takes.
class Takes final : public models::Encoder {
 public:
  Takes(data::ModalityKind kind, int64_t sample_rate) : kind_(kind), sample_rate_(sample_rate) {}
  data::ModalityKind input() const override { return kind_; }
  int64_t sample_rate() const override { return sample_rate_; }
  int64_t dim() const override { return 1; }
  std::vector<models::ParameterSpec> specs() const override { return {}; }
  batch::Ragged encode(const models::Parameters&, const batch::Ragged& raw, const std::vector<int64_t>&,
                       const models::StepContext&) const override {
    return raw;
  }

 private:
  data::ModalityKind kind_;
  int64_t sample_rate_;
};

TEST(DataSource, EncodersTakeTheKindAndRateOfTheData) {
  data::Modality audio, text;
  audio.name = "audio";
  audio.kind = data::ModalityKind::kWaveform;
  audio.sample_rate = 44100;
  text.name = "text";
  text.kind = data::ModalityKind::kTokens;
  const Takes speech(data::ModalityKind::kWaveform, 16000), any_rate(data::ModalityKind::kWaveform, 0),
      words(data::ModalityKind::kTokens, 0);
  EXPECT_EQ(
      encoder_problem(audio, 2, &speech, "d.h5"),
      "encoders[2].path: this encoder takes 16000 Hz, but \"audio\" has 44100 Hz in d.h5; import it with --resample "
      "16000");
  EXPECT_EQ(encoder_problem(audio, 2, &any_rate, "d.h5"), "");
  EXPECT_EQ(encoder_problem(text, 0, &words, "d.h5"), "");
  EXPECT_EQ(encoder_problem(text, 0, &speech, "d.h5"),
            "encoders[0].path: this encoder takes waveforms, but \"text\" holds tokens in d.h5");
  EXPECT_EQ(encoder_problem(audio, 0, &words, "d.h5"),
            "encoders[0].path: this encoder takes tokens, but \"audio\" holds waveforms in d.h5");
  EXPECT_EQ(encoder_problem(audio, 0, nullptr, "d.h5"), "");
}

TEST(FrozenFeatures, BytesAreThoseOfWhatEncodersWillGive) {
  const auto dataset = std::make_shared<MemoryDataset>(std::vector<std::string>{"audio", "text", "vision"},
                                                       std::vector<int64_t>{3, 0, 5, 1});
  dataset->index().modalities[0].kind = data::ModalityKind::kWaveform;
  dataset->index().modalities[1].kind = data::ModalityKind::kTokens;
  DataSource source;
  source.dataset = dataset;
  source.modalities = {0, 1, 2};
  source.limits = {{4, 2}, {}, {}};
  std::vector<std::unique_ptr<models::Encoder>> encoders(3);
  encoders[0] = std::make_unique<Takes>(data::ModalityKind::kWaveform, 16000);
  // Audio: 3 + 0 + 4 + 0 frames of one value; text: 9 rows of two int64; vision: 9 rows of two values.
  EXPECT_EQ(bytes_with_frozen(source, {"audio"}, encoders, at::kFloat), 7 * 4 + 18 * 8 + 18 * 4);
  encoders[1] = std::make_unique<Takes>(data::ModalityKind::kTokens, 0);
  EXPECT_EQ(bytes_with_frozen(source, {"audio", "text"}, encoders, at::kDouble), 7 * 8 + 9 * 8 + 18 * 8);
}

}  // namespace
}  // namespace muster::training
