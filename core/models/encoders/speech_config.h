#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/experiment.pb.h"
#include "core/models/encoders/pretrained_folder.h"
#include "core/models/encoders/spec_augment.h"
#include "core/models/encoders/transformer.h"

namespace muster::models {

// What config.json and preprocessor_config.json say of a wav2vec2, hubert or wavlm encoder, with what the experiment
// sets instead. Defaults are those of transformers.
struct SpeechConfig {
  enum class Family { kWav2Vec2, kHubert, kWavLm } family = Family::kWav2Vec2;

  struct Convolution {
    int64_t channels, taps, stride;
  };
  std::vector<Convolution> convolutions;  // of the feature extractor
  bool convolution_bias = false;
  bool group_norm = true;  // behind the first convolution only, over time; false: layer norm behind each
  Activation extractor_activation = Activation::kGelu;  // and of the positional convolution

  bool projection_norm = true;
  double projection_dropout = 0;
  int64_t dim = 0, intermediate = 0;
  int64_t position_taps = 0, position_groups = 0;
  TransformerOptions transformer;  // norm_first: "stable layer norm"
  double layerdrop = 0;
  int64_t buckets = 0, most_distance = 0;  // WavLM's relative positions

  bool has_mask_embedding = false;
  bool masks = false;
  MaskedSpans masked_times, masked_features;

  double initial_deviation = 0;

  int64_t sample_rate = 0;
  bool standardize = false;        // each waveform to mean 0 and variance 1
  std::vector<std::string> notes;  // on how waveforms are prepared, for a person

  int64_t total_stride() const;
  // Frames that remain of `rows` values after the first `layers` convolutions.
  int64_t frames_after(int64_t rows, size_t layers) const;
  int64_t frames_of(int64_t rows) const { return frames_after(rows, convolutions.size()); }
  int64_t fewest_rows() const;
};

// Throws Error(kBadData) that names the member for a value that is wrong, for what is not implemented, and for members
// whose meaning is not known.
SpeechConfig read_speech_config(const PretrainedFolder& folder, const config::Encoder& config);

}  // namespace muster::models
