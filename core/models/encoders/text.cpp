#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "core/kernels/dropout.h"
#include "core/kernels/upload.h"
#include "core/models/encoders/make_encoder.h"
#include "core/models/encoders/pretrained_encoder.h"
#include "core/models/encoders/transformer.h"
#include "core/models/layers.h"

namespace muster::models {
namespace {

// BERT (Devlin et al., 2019), RoBERTa (Liu et al., 2019) and XLM-RoBERTa (Conneau et al., 2020): embeddings of words,
// positions and token types, and a post-norm transformer. They differ in how positions are counted.
class TextEncoder final : public PretrainedEncoder {
 public:
  explicit TextEncoder(const EncoderBlock& block);

  int64_t dim() const override { return dim_; }
  data::ModalityKind input() const override { return data::ModalityKind::kTokens; }
  std::pair<int64_t, int64_t> id_limits() const override { return {vocabulary_, types_}; }
  int64_t most_rows() const override { return positions_ - first_position_; }
  std::vector<ParameterSpec> specs() const override;
  batch::Ragged encode(const Parameters& parameters, const batch::Ragged& raw, const std::vector<int64_t>& batch_index,
                       const StepContext& step) const override;

 private:
  // What the three tables are asked for, one per row.
  struct Ids {
    std::vector<int64_t> words, positions, types;
  };

  void read_config(const config::Encoder& config);
  // Throws Error(kBadData) for what the tables do not have.
  Ids ids_of(const batch::Ragged& raw, const std::vector<int64_t>& batch_index) const;
  at::Tensor embed(const Parameters& parameters, const Ids& ids, const SampleRows& rows, const StepContext& step) const;

  int64_t vocabulary_ = 0, positions_ = 0, types_ = 0, dim_ = 0, intermediate_ = 0;
  std::optional<int64_t> padding_;  // id of the padding token: its embedding is not trained
  bool skips_padding_ = false;      // RoBERTa: positions are counted over the other tokens
  int64_t first_position_ = 0;
  double initial_deviation_ = 0;
  TransformerOptions options_;
};

TextEncoder::TextEncoder(const EncoderBlock& block) : PretrainedEncoder(block, "encoder.layer.") {
  const config::Encoder& config = block.config;
  read_config(config);
  const std::string of_speech = "is for speech encoders; this one takes text";
  require(!config.spec_augment(), "spec_augment", of_speech);
  require(config.layerdrop() == 0, "layerdrop", of_speech);
  require(config.feature_projection_dropout() == 0, "feature_projection_dropout", of_speech);
  require(config.max_seconds() == 0, "max_seconds", of_speech);
  match({prefix(),
         {"bert.", "roberta."},
         {{"LayerNorm.gamma", "LayerNorm.weight"}, {"LayerNorm.beta", "LayerNorm.bias"}},
         {"embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "cls.", "lm_head.", "classifier.",
          "qa_outputs.", "seq_relationship."},
         {}});
}

void TextEncoder::read_config(const config::Encoder& config) {
  const bool is_bert = folder().text("model_type", "") == "bert";
  if (folder().text("position_embedding_type", "absolute") != "absolute")
    folder().refuse("position_embedding_type", "only absolute positions are");
  for (const char* const decoder : {"is_decoder", "add_cross_attention", "is_encoder_decoder"})
    if (folder().boolean(decoder, false)) folder().refuse(decoder, "the model must be an encoder");
  // What the original BERT says of its pooler, which is not used, is known too.
  folder().refuse_unknown({"attention_probs_dropout_prob", "directionality", "hidden_act", "hidden_dropout_prob",
                           "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings",
                           "num_attention_heads", "num_hidden_layers", "pooler_fc_size", "pooler_num_attention_heads",
                           "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "position_embedding_type",
                           "type_vocab_size", "vocab_size"});

  vocabulary_ = folder().integer(
      "vocab_size", is_bert || folder().text("model_type", "") == "xlm-roberta" ? 30522 : 50265, 1, 10'000'000);
  dim_ = folder().integer("hidden_size", 768, 1, 65'536);
  options_.heads = folder().integer("num_attention_heads", 12, 1, 65'536);
  if (dim_ % options_.heads != 0)
    folder().refuse("num_attention_heads", fmt::format("hidden_size, {}, must be a multiple of it", dim_));
  intermediate_ = folder().integer("intermediate_size", 3072, 1, 1'048'576);
  options_.activation =
      activation_named(folder().text("hidden_act", "gelu"), "hidden_act", printable(folder().config_path()));
  const auto dropout = [&](bool is_set, double value, const char* member) {
    const double of_file = folder().number(member, 0.1, 0, 1);
    if (!is_set && of_file >= 1) folder().refuse(member, "a dropout rate is below 1");
    return is_set ? value : of_file;
  };
  options_.hidden_dropout = dropout(config.has_hidden_dropout(), config.hidden_dropout(), "hidden_dropout_prob");
  options_.attention_dropout =
      dropout(config.has_attention_dropout(), config.attention_dropout(), "attention_probs_dropout_prob");
  options_.activation_dropout = config.activation_dropout();
  positions_ = folder().integer("max_position_embeddings", 512, 1, 10'000'000);
  types_ = folder().integer("type_vocab_size", 2, 1, 65'536);
  initial_deviation_ = folder().number("initializer_range", 0.02, 0, 1e3);
  options_.norm_epsilon = folder().number("layer_norm_eps", 1e-12, 0, 1);
  const auto padding = folder().config().find("pad_token_id");
  if (padding == folder().config().end() || !padding->is_null())
    padding_ = folder().integer("pad_token_id", is_bert ? 0 : 1, 0, vocabulary_ - 1);
  if (is_bert) return;
  if (!padding_) folder().refuse("pad_token_id", "positions are counted from it");
  skips_padding_ = true;
  first_position_ = *padding_ + 1;
  if (first_position_ >= positions_)
    folder().refuse("max_position_embeddings",
                    fmt::format("positions begin behind pad_token_id, at {}", first_position_));
}

std::vector<ParameterSpec> TextEncoder::specs() const {
  std::vector<ParameterSpec> specs;
  const Initial weight = Initial::normal(initial_deviation_);
  const auto with_padding = [&](bool has_padding) {
    Initial initial = weight;
    if (has_padding && padding_) initial.zero_row = *padding_;
    return initial;
  };
  const std::string embeddings = prefix() + "embeddings.";
  specs.push_back({embeddings + "word_embeddings.weight", {vocabulary_, dim_}, with_padding(true)});
  specs.push_back({embeddings + "position_embeddings.weight", {positions_, dim_}, with_padding(skips_padding_)});
  specs.push_back({embeddings + "token_type_embeddings.weight", {types_, dim_}, weight});
  add_layer_norm(specs, embeddings + "LayerNorm", dim_);
  mark(specs, 0, trains_all_, layers_);
  for (int64_t layer = 0; layer < layers_; ++layer) {
    const size_t begin = specs.size();
    const std::string name = layer_name(layer);
    add_linear(specs, name + "attention.self.query", dim_, dim_, weight);
    add_linear(specs, name + "attention.self.key", dim_, dim_, weight);
    specs.back().zero_gradient_rows = dim_;  // the softmax does not see the keys' bias
    add_linear(specs, name + "attention.self.value", dim_, dim_, weight);
    add_linear(specs, name + "attention.output.dense", dim_, dim_, weight);
    add_layer_norm(specs, name + "attention.output.LayerNorm", dim_);
    add_linear(specs, name + "intermediate.dense", intermediate_, dim_, weight);
    add_linear(specs, name + "output.dense", dim_, intermediate_, weight);
    add_layer_norm(specs, name + "output.LayerNorm", dim_);
    mark(specs, begin, layer >= first_trained_, layers_ - 1 - layer);
  }
  add_layer_weights(specs);
  return specs;
}

TextEncoder::Ids TextEncoder::ids_of(const batch::Ragged& raw, const std::vector<int64_t>& batch_index) const {
  if (raw.values.dim() != 2 || raw.values.scalar_type() != at::kLong || raw.values.size(1) < 1 ||
      raw.values.size(1) > 2)
    throw Error(ExitCode::kBadData,
                fmt::format("{}: a text encoder takes rows of a token id and, perhaps, a token type id", block_.path));
  const at::Tensor host = raw.values.to(at::kCPU).contiguous();
  const int64_t* values = host.const_data_ptr<int64_t>();
  const int64_t columns = host.size(1), rows = raw.rows();
  Ids ids;
  for (auto* each : {&ids.words, &ids.positions, &ids.types}) each->reserve(static_cast<size_t>(rows));
  for (int64_t sample = 0; sample < raw.samples(); ++sample) {
    const auto refuse = [&](const std::string& problem) {
      throw Error(ExitCode::kBadData,
                  fmt::format("{} ({}): sample {} of the batch: {}", block_.path, printable(folder().path()),
                              batch_index[static_cast<size_t>(sample)], problem));
    };
    int64_t position = first_position_;
    for (int64_t row = raw.offsets[sample]; row < raw.offsets[sample + 1]; ++row) {
      const int64_t word = values[row * columns], type = columns > 1 ? values[row * columns + 1] : 0;
      const int64_t token = row - raw.offsets[sample];
      if (word < 0 || word >= vocabulary_)
        refuse(
            fmt::format("token {} has the id {}, but the vocabulary has ids 0 to {}: tokenize the text with the "
                        "tokenizer of this encoder",
                        token, word, vocabulary_ - 1));
      if (type < 0 || type >= types_)
        refuse(
            fmt::format("token {} has the token type {}, but the encoder has types 0 to {}", token, type, types_ - 1));
      const bool is_padding = skips_padding_ && word == *padding_;
      if (!is_padding && position >= positions_)
        refuse(fmt::format("it has {} tokens, but the encoder has positions for {}: set {}.max_tokens: {}",
                           raw.length(sample), most_rows(), block_.path, most_rows()));
      ids.words.push_back(word);
      ids.types.push_back(type);
      ids.positions.push_back(is_padding ? *padding_ : position++);
    }
  }
  return ids;
}

at::Tensor TextEncoder::embed(const Parameters& parameters, const Ids& ids, const SampleRows& rows,
                              const StepContext& step) const {
  const auto look_up = [&](const char* table, const std::vector<int64_t>& which, std::optional<int64_t> padding) {
    const at::Tensor& weight = parameters[fmt::format("{}embeddings.{}.weight", prefix(), table)];
    return at::embedding(weight, kernels::upload(which, weight.device()), padding.value_or(-1));
  };
  const at::Tensor sum = look_up("word_embeddings", ids.words, padding_) +
                         look_up("token_type_embeddings", ids.types, std::nullopt) +
                         look_up("position_embeddings", ids.positions, skips_padding_ ? padding_ : std::nullopt);
  const at::Tensor x = layer_norm(parameters, prefix() + "embeddings.LayerNorm", sum, options_.norm_epsilon);
  return kernels::dropout(x, step.training ? options_.hidden_dropout : 0, rows.offsets, rows.batch_index,
                          step.dropout(block_.first_dropout_layer));
}

batch::Ragged TextEncoder::encode(const Parameters& parameters, const batch::Ragged& raw,
                                  const std::vector<int64_t>& batch_index, const StepContext& any_step) const {
  const StepContext step = as_trained(any_step);
  const SampleRows rows{raw.offsets, batch_index};
  at::Tensor x;
  {
    const at::AutoGradMode gradients(at::GradMode::is_enabled() && trains_all_);
    x = embed(parameters, ids_of(raw, batch_index), rows, step);
  }
  x = through_layers(parameters, std::move(x), [&](int64_t layer, const at::Tensor& input) {
    const std::string name = layer_name(layer);
    const TransformerLayerNames names{name + "attention.self.query",
                                      name + "attention.self.key",
                                      name + "attention.self.value",
                                      name + "attention.output.dense",
                                      name + "attention.output.LayerNorm",
                                      name + "intermediate.dense",
                                      name + "output.dense",
                                      name + "output.LayerNorm"};
    const auto dropout =
        block_.first_dropout_layer + 1 + static_cast<uint32_t>(layer) * kDropoutLayersPerTransformerLayer;
    return transformer_layer(parameters, names, options_, input, rows, step, dropout);
  });
  return {x, raw.offsets};
}

}  // namespace

std::unique_ptr<Encoder> make_text_encoder(const EncoderBlock& block) { return std::make_unique<TextEncoder>(block); }

}  // namespace muster::models
