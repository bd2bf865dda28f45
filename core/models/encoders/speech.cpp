#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "core/kernels/channel_norm.h"
#include "core/kernels/ragged_convolution.h"
#include "core/kernels/upload.h"
#include "core/models/encoders/make_encoder.h"
#include "core/models/encoders/pretrained_encoder.h"
#include "core/models/encoders/speech_config.h"
#include "core/models/layers.h"

// wav2vec 2.0 (Baevski et al., 2020), HuBERT (Hsu et al., 2021) and WavLM (Chen et al., 2022), as transformers computes
// them for one sample without padding.
namespace muster::models {
namespace {

// Dropout layers of the encoder. The masks of SpecAugment and the choice of layers that are left out have numbers of
// their own among them.
enum SpeechDropoutLayer : uint32_t {
  kProjectionDropout = 0,
  kInputDropout = 1,
  kTimeMask = 2,
  kFeatureMask = 3,
  kLayerChoice = 4,
  kFirstTransformerLayer = 8
};

class SpeechEncoder final : public PretrainedEncoder {
 public:
  explicit SpeechEncoder(const EncoderBlock& block);

  int64_t dim() const override { return config_.dim; }
  data::ModalityKind input() const override { return data::ModalityKind::kWaveform; }
  int64_t sample_rate() const override { return config_.sample_rate; }
  int64_t frames_of(int64_t rows) const override { return config_.frames_of(rows); }
  int64_t fewest_rows() const override { return config_.fewest_rows(); }
  std::vector<ParameterSpec> specs() const override;
  batch::Ragged encode(const Parameters& parameters, const batch::Ragged& raw, const std::vector<int64_t>& batch_index,
                       const StepContext& step) const override;

 private:
  std::string convolution_name(size_t layer) const {
    return fmt::format("{}feature_extractor.conv_layers.{}.", prefix(), layer);
  }
  std::string positions_name() const { return prefix() + "encoder.pos_conv_embed.conv."; }
  // What is between feature extractor and transformer.
  bool trains_input() const { return !is_frozen_ && (trains_all_ || block_.config.top_layers() == 0); }
  bool is_wavlm() const { return config_.family == SpeechConfig::Family::kWavLm; }
  // Whether the last norm of a pre-norm encoder is behind what is asked for.
  bool has_final_norm() const {
    return config_.transformer.norm_first && block_.config.layer() == 0 && !block_.config.weighted_layers();
  }

  at::Tensor features(const Parameters& parameters, const batch::Ragged& raw, bool training) const;
  at::Tensor features_of(const Parameters& parameters, const batch::Ragged& raw, int64_t first, int64_t last) const;
  at::Tensor transformer_input(const Parameters& parameters, const at::Tensor& features, const SampleRows& rows,
                               const StepContext& step) const;
  RelativePositionBias relative_positions(const Parameters& parameters, const SampleRows& rows) const;
  bool is_left_out(int64_t layer, const StepContext& step) const;
  at::Tensor layer_output(const Parameters& parameters, int64_t layer, const at::Tensor& x, const SampleRows& rows,
                          const StepContext& step, RelativePositionBias* bias) const;

  SpeechConfig config_;
};

SpeechEncoder::SpeechEncoder(const EncoderBlock& block)
    : PretrainedEncoder(block, "encoder.layers."), config_(read_speech_config(folder(), block.config)) {
  const config::Encoder& config = block.config;
  require(!config.spec_augment() || config_.has_mask_embedding, "spec_augment",
          fmt::format("mask_time_prob and mask_feature_prob in {} are 0, so nothing would be masked",
                      printable(folder().config_path())));
  require(config.max_tokens() == 0, "max_tokens", "is for text encoders; this one takes waveforms");
  PretrainedFolder::Names names{
      prefix(),
      {"wavlm.", "wav2vec2.", "hubert."},
      {{"parametrizations.weight.original0", "weight_g"}, {"parametrizations.weight.original1", "weight_v"}},
      // The heads of transformers' models, and what pre-training leaves.
      {"lm_head.", "project_hid.", "project_q.", "quantizer.", "classifier.", "projector.", "tdnn.", "objective.",
       "feature_projector.", "final_proj.", "label_embeddings_concat", "layer_weights"},
      // Many published files have no mask embedding although they mask in training.
      {"masked_spec_embed"}};
  if (config_.transformer.norm_first && !has_final_norm()) names.ignored.push_back("encoder.layer_norm.");
  if (!config_.has_mask_embedding) names.ignored.push_back("masked_spec_embed");
  match(std::move(names));
}

std::vector<ParameterSpec> SpeechEncoder::specs() const {
  std::vector<ParameterSpec> specs;
  const bool is_hubert = config_.family == SpeechConfig::Family::kHubert;
  const auto uniform = [](int64_t fan_in) {
    return Initial{Initial::Kind::kUniform, std::sqrt(1.0 / static_cast<double>(fan_in))};
  };
  const Initial weight = Initial::normal(config_.initial_deviation), zero = Initial::constant(0);
  int64_t in = 1;
  for (size_t i = 0; i < config_.convolutions.size(); ++i) {
    const auto& [out, taps, stride] = config_.convolutions[i];
    const std::string name = convolution_name(i);
    specs.push_back({name + "conv.weight", {out, in, taps}, Initial::normal(std::sqrt(2.0 / double(in * taps)))});
    if (config_.convolution_bias) specs.push_back({name + "conv.bias", {out}, is_hubert ? zero : uniform(in * taps)});
    // The norm over time takes each channel's bias away again.
    if (config_.convolution_bias && config_.group_norm && i == 0) specs.back().zero_gradient_rows = out;
    if (!config_.group_norm || i == 0) add_layer_norm(specs, name + "layer_norm", out);
    in = out;
  }
  mark(specs, 0, trains_all_, layers_);

  size_t begin = specs.size();
  if (config_.projection_norm) add_layer_norm(specs, prefix() + "feature_projection.layer_norm", in);
  const std::string projection = prefix() + "feature_projection.projection";
  specs.push_back({projection + ".weight", {config_.dim, in}, is_hubert ? weight : uniform(in)});
  specs.push_back({projection + ".bias", {config_.dim}, is_hubert ? zero : uniform(in)});
  // Direction and length of each tap's matrix start so that their product is the direction: as the weight itself would.
  const double deviation = 2 * std::sqrt(1.0 / double(config_.position_taps * config_.dim));
  const int64_t per_group = config_.dim / config_.position_groups;
  specs.push_back({positions_name() + "parametrizations.weight.original0",
                   {1, 1, config_.position_taps},
                   Initial::constant(deviation * std::sqrt(double(config_.dim * per_group)))});
  specs.push_back({positions_name() + "parametrizations.weight.original1",
                   {config_.dim, per_group, config_.position_taps},
                   Initial::normal(deviation)});
  specs.push_back({positions_name() + "bias", {config_.dim}, zero});
  if (!config_.transformer.norm_first) add_layer_norm(specs, prefix() + "encoder.layer_norm", config_.dim);
  mark(specs, begin, trains_input(), layers_);
  begin = specs.size();
  if (config_.has_mask_embedding)
    specs.push_back({prefix() + "masked_spec_embed", {config_.dim}, Initial{Initial::Kind::kUniform, 0.5, -1, 0.5}});
  mark(specs, begin, trains_input() && config_.masks, layers_);

  for (int64_t layer = 0; layer < layers_; ++layer) {
    begin = specs.size();
    const std::string name = layer_name(layer), attention = name + "attention.";
    add_linear(specs, attention + "k_proj", config_.dim, config_.dim, weight);
    specs.back().zero_gradient_rows = config_.dim;  // the softmax does not see the keys' bias
    add_linear(specs, attention + "v_proj", config_.dim, config_.dim, weight);
    add_linear(specs, attention + "q_proj", config_.dim, config_.dim, weight);
    add_linear(specs, attention + "out_proj", config_.dim, config_.dim, weight);
    if (is_wavlm()) {
      const int64_t heads = config_.transformer.heads;
      specs.push_back({attention + "gru_rel_pos_const", {1, heads, 1, 1}, Initial::constant(1)});
      add_linear(specs, attention + "gru_rel_pos_linear", 8, config_.dim / heads, weight);
      if (layer == 0) specs.push_back({attention + "rel_attn_embed.weight", {config_.buckets, heads}, weight});
    }
    add_layer_norm(specs, name + "layer_norm", config_.dim);
    add_linear(specs, name + "feed_forward.intermediate_dense", config_.intermediate, config_.dim, weight);
    add_linear(specs, name + "feed_forward.output_dense", config_.dim, config_.intermediate, weight);
    add_layer_norm(specs, name + "final_layer_norm", config_.dim);
    mark(specs, begin, layer >= first_trained_, layers_ - 1 - layer);
  }
  begin = specs.size();
  if (has_final_norm()) add_layer_norm(specs, prefix() + "encoder.layer_norm", config_.dim);
  mark(specs, begin, !is_frozen_, 0);
  add_layer_weights(specs);
  return specs;
}

// The feature extractor over samples [first, last), which stand one after another in one signal. Each begins at a
// multiple of all strides' product, so after each convolution it begins at a whole row, and what belongs to it has seen
// nothing but itself. What lies between is dropped at the end.
at::Tensor SpeechEncoder::features_of(const Parameters& parameters, const batch::Ragged& raw, int64_t first,
                                      int64_t last) const {
  const int64_t stride = config_.total_stride();
  std::vector<kernels::RowSpan> spans;  // of the signal
  std::vector<int64_t> begins;          // in raw
  int64_t end = 0;
  for (int64_t sample = first; sample < last; ++sample) {
    if (config_.frames_of(raw.length(sample)) == 0) continue;
    spans.push_back({(end + stride - 1) / stride * stride, raw.length(sample)});
    begins.push_back(raw.offsets[sample]);
    end = spans.back().begin + spans.back().count;
  }
  at::Tensor x = at::zeros({end, 1}, raw.values.options().dtype(parameters.dtype()));
  for (size_t i = 0; i < spans.size(); ++i) {
    at::Tensor values = raw.values.narrow(0, begins[i], spans[i].count);
    if (config_.standardize) {
      values = values.to(at::kDouble);  // a long sum
      const auto [variance, mean] = at::var_mean(values, /*dim=*/at::IntArrayRef{0}, /*unbiased=*/false);
      values = (values - mean) / (variance + 1e-7).sqrt();
    }
    x.narrow(0, spans[i].begin, spans[i].count).copy_(values);
  }
  if (spans.empty()) return at::zeros({0, config_.convolutions.back().channels}, x.options());

  for (size_t layer = 0; layer < config_.convolutions.size(); ++layer) {
    const std::string name = convolution_name(layer);
    const auto bias = config_.convolution_bias ? std::optional(parameters[name + "conv.bias"]) : std::nullopt;
    x = kernels::convolution(x, parameters[name + "conv.weight"], bias, config_.convolutions[layer].stride);
    if (!config_.group_norm) {
      x = layer_norm(parameters, name + "layer_norm", x);
    } else if (layer == 0) {
      std::vector<kernels::RowSpan> rows = spans;
      for (auto& [begin, count] : rows) {
        begin /= config_.convolutions[0].stride;
        count = config_.frames_after(count, 1);
      }
      x = kernels::channel_norm(x.to(parameters.dtype()), parameters[name + "layer_norm.weight"],
                                parameters[name + "layer_norm.bias"], rows, 1e-5);
    }
    x = activate(config_.extractor_activation, x);
  }

  if (spans.size() == 1) return x.narrow(0, 0, config_.frames_of(spans[0].count));
  std::vector<int64_t> frames;
  for (const auto& [begin, count] : spans)
    for (int64_t frame = 0; frame < config_.frames_of(count); ++frame) frames.push_back(begin / stride + frame);
  return x.index_select(0, kernels::upload(frames, x.device()));
}

at::Tensor SpeechEncoder::features(const Parameters& parameters, const batch::Ragged& raw, bool training) const {
  const at::AutoGradMode gradients(at::GradMode::is_enabled() && trains_all_);
  // Not by whether there is a graph: a first pass without one must have the same bits.
  if (training && trains_all_) return features_of(parameters, raw, 0, raw.samples());
  // Where nothing need be kept for a backward pass, a few samples at a time need less memory, and stay in the caches.
  const int64_t most_rows = raw.values.is_cuda() ? int64_t{1} << 22 : int64_t{1} << 17;
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < raw.samples();) {
    int64_t last = first + 1;
    while (last < raw.samples() && raw.offsets[last + 1] - raw.offsets[first] <= most_rows) ++last;
    parts.push_back(features_of(parameters, raw, first, last));
    first = last;
  }
  return at::cat(parts);
}

at::Tensor SpeechEncoder::transformer_input(const Parameters& parameters, const at::Tensor& features,
                                            const SampleRows& rows, const StepContext& step) const {
  const auto dropped = [&](const at::Tensor& x, double p, uint32_t layer) {
    return kernels::dropout(x, step.training ? p : 0, rows.offsets, rows.batch_index,
                            step.dropout(block_.first_dropout_layer + layer));
  };
  at::Tensor x = features;
  if (config_.projection_norm)
    x = layer_norm(parameters, prefix() + "feature_projection.layer_norm", x, config_.transformer.norm_epsilon);
  // The sums of all layers stand on this: in the parameters' dtype also under autocast.
  x = linear(parameters, prefix() + "feature_projection.projection", x).to(parameters.dtype());
  x = dropped(x, config_.projection_dropout, kProjectionDropout);
  if (step.training && config_.masks) {
    x = mask_times(x, parameters[prefix() + "masked_spec_embed"], config_.masked_times, rows,
                   step.dropout(block_.first_dropout_layer + kTimeMask));
    x = mask_features(x, config_.masked_features, rows, step.dropout(block_.first_dropout_layer + kFeatureMask));
  }
  const at::Tensor weight = at::_weight_norm(parameters[positions_name() + "parametrizations.weight.original1"],
                                             parameters[positions_name() + "parametrizations.weight.original0"], 2);
  const at::Tensor positions = kernels::same_convolution(x, weight, rows.offsets, config_.position_groups) +
                               parameters[positions_name() + "bias"];
  x = x + activate(config_.extractor_activation, positions);
  if (!config_.transformer.norm_first)
    x = layer_norm(parameters, prefix() + "encoder.layer_norm", x, config_.transformer.norm_epsilon);
  return dropped(x, config_.transformer.hidden_dropout, kInputDropout);
}

// The first layer's embedding of distances, which all layers share. Distances fall into buckets: small ones each into
// its own, larger ones into buckets that grow with the logarithm (Raffel et al., 2020), in float32 as transformers
// computes them, on the CPU: a logarithm that differs in its last bit could move a distance to the next bucket.
RelativePositionBias SpeechEncoder::relative_positions(const Parameters& parameters, const SampleRows& rows) const {
  int64_t longest = 1;
  for (size_t sample = 0; sample + 1 < rows.offsets.size(); ++sample)
    longest = std::max(longest, rows.offsets[sample + 1] - rows.offsets[sample]);
  const int64_t half = config_.buckets / 2, exact = half / 2;
  const at::Tensor distance = at::arange(1 - longest, longest, at::kLong), length = distance.abs();
  const at::Tensor grown = at::log(length.to(at::kFloat) / static_cast<double>(exact)) /
                           std::log(static_cast<double>(config_.most_distance) / static_cast<double>(exact)) *
                           static_cast<double>(half - exact);
  // Lengths below `exact`, whose logarithm may be that of 0, are not taken from here.
  const at::Tensor large = (grown.clamp_min(0) + exact).to(at::kLong).clamp_max(half - 1);
  const at::Tensor bucket = (distance > 0).to(at::kLong) * half + length.where(length < exact, large);
  const at::Tensor& embedding = parameters[layer_name(0) + "attention.rel_attn_embed.weight"];
  return {at::embedding(embedding, kernels::upload(bucket, embedding.device())), ""};
}

// Layerdrop (Fan et al., 2020): one draw per layer and step for the whole global batch, so it does not depend on how
// the batch is spread over ranks. WavLM keeps the first layer, as in transformers.
bool SpeechEncoder::is_left_out(int64_t layer, const StepContext& step) const {
  if (!step.training || config_.layerdrop == 0 || (is_wavlm() && layer == 0)) return false;
  const auto key = step.dropout(block_.first_dropout_layer + kLayerChoice);
  return random::uniform(random::philox4x32(key.seed, {static_cast<uint32_t>(layer), 0, key.site, key.step})[0]) <
         config_.layerdrop;
}

at::Tensor SpeechEncoder::layer_output(const Parameters& parameters, int64_t layer, const at::Tensor& x,
                                       const SampleRows& rows, const StepContext& step,
                                       RelativePositionBias* bias) const {
  if (is_left_out(layer, step)) return x;
  const std::string name = layer_name(layer), attention = name + "attention.";
  const TransformerLayerNames names{attention + "q_proj",
                                    attention + "k_proj",
                                    attention + "v_proj",
                                    attention + "out_proj",
                                    name + "layer_norm",
                                    name + "feed_forward.intermediate_dense",
                                    name + "feed_forward.output_dense",
                                    name + "final_layer_norm"};
  if (bias != nullptr) bias->gate = attention;
  const auto dropout = block_.first_dropout_layer + kFirstTransformerLayer +
                       static_cast<uint32_t>(layer) * kDropoutLayersPerTransformerLayer;
  return transformer_layer(parameters, names, config_.transformer, x, rows, step, dropout, bias);
}

batch::Ragged SpeechEncoder::encode(const Parameters& parameters, const batch::Ragged& raw,
                                    const std::vector<int64_t>& batch_index, const StepContext& any_step) const {
  const StepContext step = as_trained(any_step);
  if (raw.values.dim() != 2 || raw.values.size(1) != 1 || !raw.values.is_floating_point())
    throw Error(ExitCode::kBadData, fmt::format("{}: a speech encoder takes rows of one value", block_.path));
  std::vector<int64_t> offsets{0};
  for (int64_t sample = 0; sample < raw.samples(); ++sample)
    offsets.push_back(offsets.back() + config_.frames_of(raw.length(sample)));
  if (offsets.back() == 0)
    return {at::zeros({0, config_.dim}, raw.values.options().dtype(parameters.dtype())), offsets};
  const SampleRows rows{offsets, batch_index};

  at::Tensor x = features(parameters, raw, step.training);
  {
    const at::AutoGradMode gradients(at::GradMode::is_enabled() && trains_input());
    x = transformer_input(parameters, x, rows, step);
  }
  std::optional<RelativePositionBias> bias;
  if (is_wavlm()) {
    const at::AutoGradMode gradients(at::GradMode::is_enabled() && first_trained_ == 0);
    bias = relative_positions(parameters, rows);
  }
  x = through_layers(parameters, std::move(x), [&](int64_t layer, const at::Tensor& input) {
    return layer_output(parameters, layer, input, rows, step, bias ? &*bias : nullptr);
  });
  if (has_final_norm()) {
    const at::AutoGradMode gradients(at::GradMode::is_enabled() && !is_frozen_);
    x = layer_norm(parameters, prefix() + "encoder.layer_norm", x, config_.transformer.norm_epsilon);
  }
  return {x, offsets};
}

}  // namespace

std::unique_ptr<Encoder> make_speech_encoder(const EncoderBlock& block) {
  return std::make_unique<SpeechEncoder>(block);
}

}  // namespace muster::models
