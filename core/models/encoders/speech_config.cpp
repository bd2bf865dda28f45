#include "core/models/encoders/speech_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace muster::models {
namespace {

// What the encoder's hidden states depend on.
const std::vector<std::string>& members_of_encoder() {
  static const std::vector<std::string> names{"activation_dropout",
                                              "adapter_attn_dim",
                                              "add_adapter",
                                              "apply_spec_augment",
                                              "attention_dropout",
                                              "conv_bias",
                                              "conv_dim",
                                              "conv_kernel",
                                              "conv_pos_batch_norm",
                                              "conv_stride",
                                              "do_stable_layer_norm",
                                              "feat_extract_activation",
                                              "feat_extract_norm",
                                              "feat_proj_dropout",
                                              "feat_proj_layer_norm",
                                              "hidden_act",
                                              "hidden_dropout",
                                              "hidden_size",
                                              "initializer_range",
                                              "intermediate_size",
                                              "layer_norm_eps",
                                              "layerdrop",
                                              "mask_feature_length",
                                              "mask_feature_min_masks",
                                              "mask_feature_prob",
                                              "mask_time_length",
                                              "mask_time_min_masks",
                                              "mask_time_prob",
                                              "max_bucket_distance",
                                              "num_attention_heads",
                                              "num_buckets",
                                              "num_conv_pos_embedding_groups",
                                              "num_conv_pos_embeddings",
                                              "num_feat_extract_layers",
                                              "num_hidden_layers"};
  return names;
}

// What published files hold besides, and transformers does not look at in an encoder: settings of heads, of
// pre-training, and of fairseq, from which the first ones were converted.
const std::vector<std::string>& members_beside_encoder() {
  static const std::vector<std::string> names{"feat_extract_dropout",
                                              "feat_quantizer_dropout",
                                              "final_dropout",
                                              "freeze_feat_extract_train",
                                              "hidden_dropout_prob",
                                              "mask_channel_length",
                                              "mask_channel_prob",
                                              "mask_channel_min_space",
                                              "mask_channel_other",
                                              "mask_channel_selection",
                                              "mask_time_min_space",
                                              "mask_time_other",
                                              "mask_time_selection",
                                              "no_mask_channel_overlap",
                                              "no_mask_time_overlap",
                                              "num_adapter_layers",
                                              "num_ctc_classes",
                                              "num_negatives",
                                              "output_hidden_size",
                                              "proj_codevector_dim",
                                              "replace_prob",
                                              "use_weighted_layer_sum",
                                              "vocab_size"};
  return names;
}

// Beginnings of the names of such settings. Adapters: add_adapter and adapter_attn_dim say whether there are any.
constexpr const char* kBesideEncoder[] = {"adapter_",       "classifier_",    "codevector_", "contrastive_", "ctc_",
                                          "diversity_loss", "num_codevector", "tdnn_",       "xvector_"};

void check_members(const PretrainedFolder& folder) {
  if (folder.boolean("add_adapter", false))
    folder.refuse("add_adapter",
                  "encoders with adapters behind the transformer are not; set it to false and remove "
                  "the adapter's tensors if the encoder alone is wanted");
  if (const auto found = folder.config().find("adapter_attn_dim"); found != folder.config().end() && !found->is_null())
    folder.refuse("adapter_attn_dim", "encoders with language adapters in their layers are not");
  if (folder.boolean("conv_pos_batch_norm", false))
    folder.refuse("conv_pos_batch_norm", "what batch normalization gives for a sample depends on the others");
  std::vector<std::string> known = members_of_encoder();
  known.insert(known.end(), members_beside_encoder().begin(), members_beside_encoder().end());
  for (const auto& [name, value] : folder.config().items())
    for (const char* const beginning : kBesideEncoder)
      if (name.rfind(beginning, 0) == 0) known.push_back(name);
  folder.refuse_unknown(known);
}

void read_convolutions(const PretrainedFolder& folder, SpeechConfig& result) {
  const auto channels = folder.integers("conv_dim", {512, 512, 512, 512, 512, 512, 512}, 1, 65'536);
  const auto strides = folder.integers("conv_stride", {5, 2, 2, 2, 2, 2, 2}, 1, 4'096);
  const auto taps = folder.integers("conv_kernel", {10, 3, 3, 3, 3, 2, 2}, 1, 4'096);
  if (channels.empty() || channels.size() > 32) folder.refuse("conv_dim", "1 to 32 convolutions are");
  if (channels.size() != strides.size()) folder.refuse("conv_stride", "it must be as long as conv_dim");
  if (channels.size() != taps.size()) folder.refuse("conv_kernel", "it must be as long as conv_dim");
  const auto count = static_cast<int64_t>(channels.size());
  if (folder.integer("num_feat_extract_layers", count, 0, 1'000) != count)
    folder.refuse("num_feat_extract_layers", "it must be the length of conv_dim");
  int64_t stride = 1;
  for (size_t i = 0; i < channels.size(); ++i) {
    result.convolutions.push_back({channels[i], taps[i], strides[i]});
    stride *= strides[i];
    if (stride > 1'000'000) folder.refuse("conv_stride", "at most a million values per frame are");
  }
  result.convolution_bias = folder.boolean("conv_bias", false);
  const std::string norm = folder.text("feat_extract_norm", "group");
  if (norm != "group" && norm != "layer") folder.refuse("feat_extract_norm", "group and layer are");
  result.group_norm = norm == "group";
}

void read_masks(const PretrainedFolder& folder, const config::Encoder& config, SpeechConfig& result) {
  constexpr int64_t kMost = 1'000'000;
  result.masked_times = {folder.number("mask_time_prob", 0.05, 0, 1), folder.integer("mask_time_length", 10, 1, kMost),
                         folder.integer("mask_time_min_masks", 2, 0, kMost)};
  result.masked_features = {folder.number("mask_feature_prob", 0, 0, 1),
                            folder.integer("mask_feature_length", 10, 1, kMost),
                            folder.integer("mask_feature_min_masks", 0, 0, kMost)};
  result.has_mask_embedding = result.masked_times.share > 0 || result.masked_features.share > 0;
  result.masks = result.has_mask_embedding &&
                 (config.has_spec_augment() ? config.spec_augment() : folder.boolean("apply_spec_augment", true));
  if (result.masks && result.masked_features.share > 0 && result.masked_features.length > result.dim)
    folder.refuse("mask_feature_length", fmt::format("there are {} features", result.dim));
}

std::string member_text(const nlohmann::json& value) {
  return in_quotes(value.is_string() ? value.get<std::string>() : json_text(value));
}

// Throws for members that would make something else of a waveform than its values, and notes those that are not known.
void check_preprocessor(const std::string& path, const nlohmann::json& file, SpeechConfig& result) {
  static const std::set<std::string> of_spectrograms{"do_ceptral_normalize", "hop_length",     "n_fft",
                                                     "normalize_means",      "normalize_vars", "num_mel_bins"};
  // What is read elsewhere, or changes nothing for a sample that is read alone: how samples of a batch are padded, and
  // who reads the file. What says how much of a sample is read (truncation) is not among it.
  static const std::set<std::string> known{
      "_name_or_path", "_processor_class", "do_normalize",        "feature_extractor_type", "feature_size",
      "padding_side",  "padding_value",    "processor_class",     "return_attention_mask",  "return_tensors",
      "sampling_rate", "tokenizer_class",  "transformers_version"};
  std::vector<std::string> unknown;
  for (const auto& [name, value] : file.items()) {
    const bool asks_for_nothing =
        value.is_null() || value == false || value == "" || (value.is_structured() && value.empty());
    if (asks_for_nothing) continue;
    if (of_spectrograms.count(name) > 0 || (name == "feature_extractor_type" && value != "Wav2Vec2FeatureExtractor"))
      throw Error(
          ExitCode::kBadData,
          fmt::format("{}: {}: {} is not supported; waveforms are taken as Wav2Vec2FeatureExtractor takes them, "
                      "value by value",
                      printable(path), name, member_text(value)));
    if (known.count(name) == 0) unknown.push_back(fmt::format("{}: {}", in_quotes(name), member_text(value)));
  }
  if (!unknown.empty())
    result.notes.push_back(fmt::format("{}: these members are not known and do nothing here: {}", printable(path),
                                       join_first(unknown, 20)));
}

void read_preprocessor(const PretrainedFolder& folder, SpeechConfig& result) {
  const nlohmann::json& file = folder.preprocessor();
  const std::string path = folder.path() + "/preprocessor_config.json";
  const auto refuse = [&](const char* name, const char* expected) {
    throw Error(ExitCode::kBadData, fmt::format("{}: {} must be {}; it is {}", printable(path), name, expected,
                                                in_quotes(file.at(name).dump(-1, ' ', true))));
  };
  check_preprocessor(path, file, result);
  result.sample_rate = 16'000;
  if (file.contains("sampling_rate")) {
    const auto& rate = file["sampling_rate"];
    if (!rate.is_number_integer() || rate < 1 || rate > 1'000'000)
      refuse("sampling_rate", "a number of values per second");
    result.sample_rate = rate.get<int64_t>();
  }
  if (file.contains("feature_size") && file["feature_size"] != 1) refuse("feature_size", "1, one value per time");
  // Without the file there is nothing to go by but custom: models with layer norm in the feature extractor were trained
  // on standardized waveforms, those with group norm, which undoes the scale itself, were not. A file that does not say
  // it means true, as in transformers.
  result.standardize = file.empty() ? !result.group_norm : true;
  if (file.contains("do_normalize")) {
    if (!file["do_normalize"].is_boolean()) refuse("do_normalize", "true or false");
    result.standardize = file["do_normalize"].get<bool>();
  }
  if (file.empty())
    result.notes.push_back(fmt::format(
        "{} has no preprocessor_config.json: waveforms are {}standardized (do_normalize {}), as is usual with {} norm "
        "in the feature extractor",
        printable(folder.path()), result.standardize ? "" : "not ", result.standardize,
        result.group_norm ? "group" : "layer"));
}

}  // namespace

int64_t SpeechConfig::total_stride() const {
  int64_t stride = 1;
  for (const auto& convolution : convolutions) stride *= convolution.stride;
  return stride;
}

int64_t SpeechConfig::frames_after(int64_t rows, size_t layers) const {
  for (size_t i = 0; i < layers; ++i)
    rows = rows < convolutions[i].taps ? 0 : (rows - convolutions[i].taps) / convolutions[i].stride + 1;
  return rows;
}

int64_t SpeechConfig::fewest_rows() const {
  int64_t rows = 1;
  for (auto convolution = convolutions.rbegin(); convolution != convolutions.rend(); ++convolution)
    rows = (rows - 1) * convolution->stride + convolution->taps;
  return rows;
}

SpeechConfig read_speech_config(const PretrainedFolder& folder, const config::Encoder& config) {
  SpeechConfig result;
  const std::string type = folder.text("model_type", ""), file = printable(folder.config_path());
  result.family = type == "wavlm"    ? SpeechConfig::Family::kWavLm
                  : type == "hubert" ? SpeechConfig::Family::kHubert
                                     : SpeechConfig::Family::kWav2Vec2;
  check_members(folder);
  read_convolutions(folder, result);
  result.extractor_activation =
      activation_named(folder.text("feat_extract_activation", "gelu"), "feat_extract_activation", file);

  result.dim = folder.integer("hidden_size", 768, 1, 65'536);
  result.intermediate = folder.integer("intermediate_size", 3072, 1, 1'048'576);
  result.transformer.heads = folder.integer("num_attention_heads", 12, 1, 65'536);
  if (result.dim % result.transformer.heads != 0)
    folder.refuse("num_attention_heads", fmt::format("hidden_size, {}, must be a multiple of it", result.dim));
  result.position_taps = folder.integer("num_conv_pos_embeddings", 128, 1, 65'536);
  result.position_groups = folder.integer("num_conv_pos_embedding_groups", 16, 1, 65'536);
  if (result.dim % result.position_groups != 0)
    folder.refuse("num_conv_pos_embedding_groups",
                  fmt::format("hidden_size, {}, must be a multiple of it", result.dim));
  result.transformer.norm_first = folder.boolean("do_stable_layer_norm", false);
  result.transformer.norm_epsilon = folder.number("layer_norm_eps", 1e-5, 0, 1);
  result.transformer.activation = activation_named(folder.text("hidden_act", "gelu"), "hidden_act", file);
  // Only hubert's feature projection may be without a norm.
  result.projection_norm =
      result.family != SpeechConfig::Family::kHubert || folder.boolean("feat_proj_layer_norm", true);
  if (result.family == SpeechConfig::Family::kWavLm) {
    result.buckets = folder.integer("num_buckets", 320, 4, 65'536);
    result.most_distance = folder.integer("max_bucket_distance", 800, 1, 1'000'000);
    if (result.most_distance <= result.buckets / 4)
      folder.refuse("max_bucket_distance", fmt::format("it must exceed a quarter of num_buckets, {}", result.buckets));
  }

  const auto rate = [&](bool is_set, double value, const char* member, double fallback) {
    const double of_file = folder.number(member, fallback, 0, 1);
    if (!is_set && of_file >= 1) folder.refuse(member, "a rate is below 1");
    return is_set ? value : of_file;
  };
  result.transformer.hidden_dropout = rate(config.has_hidden_dropout(), config.hidden_dropout(), "hidden_dropout", 0.1);
  result.transformer.attention_dropout =
      rate(config.has_attention_dropout(), config.attention_dropout(), "attention_dropout", 0.1);
  result.transformer.activation_dropout =
      rate(config.has_activation_dropout(), config.activation_dropout(), "activation_dropout", 0.1);
  result.projection_dropout =
      rate(config.has_feature_projection_dropout(), config.feature_projection_dropout(), "feat_proj_dropout", 0);
  result.layerdrop = rate(config.has_layerdrop(), config.layerdrop(), "layerdrop", 0.1);
  result.initial_deviation = folder.number("initializer_range", 0.02, 0, 1'000);
  read_masks(folder, config, result);
  read_preprocessor(folder, result);
  return result;
}

}  // namespace muster::models
