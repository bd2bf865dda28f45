#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "core/kernels/dropout.h"
#include "core/kernels/upload.h"
#include "core/models/encoders/make_encoder.h"
#include "core/models/encoders/transformer.h"
#include "core/models/layers.h"

namespace muster::models {
namespace {

// BERT (Devlin et al., 2019), RoBERTa (Liu et al., 2019) and XLM-RoBERTa (Conneau et al., 2020): embeddings of words,
// positions and token types, and a post-norm transformer. They differ in how positions are counted.
class TextEncoder final : public Encoder {
 public:
  TextEncoder(const config::Encoder& config, const std::string& block, std::shared_ptr<const PretrainedFolder> folder,
              const std::string& prefix, uint32_t first_dropout_layer);

  int64_t dim() const override { return dim_; }
  data::ModalityKind input() const override { return data::ModalityKind::kTokens; }
  std::pair<int64_t, int64_t> id_limits() const override { return {vocabulary_, types_}; }
  int64_t most_rows() const override { return positions_ - first_position_; }
  std::vector<ParameterSpec> specs() const override;
  std::vector<std::string> ignored_tensors() const override { return folder_->ignored(names_); }
  bool is_pretrained() const override { return folder_->has_weights(); }
  void load(Parameters& parameters) const override { folder_->load(specs(), names_, parameters); }
  batch::Ragged encode(const Parameters& parameters, const batch::Ragged& raw, const std::vector<int64_t>& batch_index,
                       const StepContext& step) const override;

 private:
  // What the three tables are asked for, one per row.
  struct Ids {
    std::vector<int64_t> words, positions, types;
  };

  void read_config(const config::Encoder& config);
  void check_settings(const config::Encoder& config) const;
  // Throws Error(kBadData) for what the tables do not have.
  Ids ids_of(const batch::Ragged& raw, const std::vector<int64_t>& batch_index) const;
  at::Tensor embed(const Parameters& parameters, const Ids& ids, const SampleRows& rows, const StepContext& step) const;
  std::string layer_name(int64_t layer) const { return fmt::format("{}encoder.layer.{}.", prefix_, layer); }

  std::string block_;
  std::shared_ptr<const PretrainedFolder> folder_;
  std::string prefix_;
  uint32_t first_dropout_layer_;
  PretrainedFolder::Names names_;

  int64_t vocabulary_ = 0, positions_ = 0, types_ = 0, dim_ = 0, intermediate_ = 0, layers_in_file_ = 0;
  std::optional<int64_t> padding_;  // id of the padding token: its embedding is not trained
  bool skips_padding_ = false;      // RoBERTa: positions are counted over the other tokens
  int64_t first_position_ = 0;
  double initial_deviation_ = 0;
  TransformerOptions options_;

  int64_t layers_ = 0;  // that are computed
  bool weighted_ = false;
  bool is_frozen_ = false, trains_embeddings_ = false;
  int64_t first_trained_ = 0;  // layer; layers_: none
  double scale_ = 1, decay_ = 1;
};

TextEncoder::TextEncoder(const config::Encoder& config, const std::string& block,
                         std::shared_ptr<const PretrainedFolder> folder, const std::string& prefix,
                         uint32_t first_dropout_layer)
    : block_(block), folder_(std::move(folder)), prefix_(prefix), first_dropout_layer_(first_dropout_layer) {
  read_config(config);
  check_settings(config);
  layers_ = config.layer() > 0 ? config.layer() : layers_in_file_;
  weighted_ = config.weighted_layers();
  scale_ = config.has_learning_rate_scale() ? config.learning_rate_scale() : 1;
  decay_ = config.has_layer_decay() ? config.layer_decay() : 1;
  trains_embeddings_ = config.train() == config::Encoder::ALL;
  const int64_t top = config.train() == config::Encoder::TRANSFORMER ? config.top_layers() : 0;
  is_frozen_ = config.train() == config::Encoder::FROZEN;
  first_trained_ = is_frozen_ ? layers_ : top > 0 ? layers_ - top : 0;
  names_ = {prefix_,
            {"bert.", "roberta."},
            {{"LayerNorm.gamma", "LayerNorm.weight"}, {"LayerNorm.beta", "LayerNorm.bias"}},
            {"embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "cls.", "lm_head.", "classifier.",
             "qa_outputs.", "seq_relationship."},
            {"layer_weights"}};
  for (int64_t layer = layers_; layer < layers_in_file_; ++layer)
    names_.ignored.push_back(fmt::format("encoder.layer.{}.", layer));
  folder_->check(specs(), names_);
}

void TextEncoder::read_config(const config::Encoder& config) {
  const PretrainedFolder& folder = *folder_;
  const bool is_bert = folder.text("model_type", "") == "bert";
  if (folder.text("position_embedding_type", "absolute") != "absolute")
    folder.refuse("position_embedding_type", "only absolute positions are");
  for (const char* const decoder : {"is_decoder", "add_cross_attention", "is_encoder_decoder"})
    if (folder.boolean(decoder, false)) folder.refuse(decoder, "the model must be an encoder");
  // What the original BERT says of its pooler, which is not used, is known too.
  folder.refuse_unknown({"attention_probs_dropout_prob", "directionality", "hidden_act", "hidden_dropout_prob",
                         "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings",
                         "num_attention_heads", "num_hidden_layers", "pooler_fc_size", "pooler_num_attention_heads",
                         "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "position_embedding_type",
                         "type_vocab_size", "vocab_size"});

  vocabulary_ = folder.integer("vocab_size", is_bert || folder.text("model_type", "") == "xlm-roberta" ? 30522 : 50265,
                               1, 10'000'000);
  dim_ = folder.integer("hidden_size", 768, 1, 65'536);
  layers_in_file_ = folder.integer("num_hidden_layers", 12, 1, 1'000);
  options_.heads = folder.integer("num_attention_heads", 12, 1, 65'536);
  if (dim_ % options_.heads != 0)
    folder.refuse("num_attention_heads", fmt::format("hidden_size, {}, must be a multiple of it", dim_));
  intermediate_ = folder.integer("intermediate_size", 3072, 1, 1'048'576);
  options_.activation =
      activation_named(folder.text("hidden_act", "gelu"), "hidden_act", printable(folder.config_path()));
  const auto dropout = [&](bool is_set, double value, const char* member) {
    const double of_file = folder.number(member, 0.1, 0, 1);
    if (!is_set && of_file >= 1) folder.refuse(member, "a dropout rate is below 1");
    return is_set ? value : of_file;
  };
  options_.hidden_dropout = dropout(config.has_hidden_dropout(), config.hidden_dropout(), "hidden_dropout_prob");
  options_.attention_dropout =
      dropout(config.has_attention_dropout(), config.attention_dropout(), "attention_probs_dropout_prob");
  options_.activation_dropout = config.activation_dropout();
  positions_ = folder.integer("max_position_embeddings", 512, 1, 10'000'000);
  types_ = folder.integer("type_vocab_size", 2, 1, 65'536);
  initial_deviation_ = folder.number("initializer_range", 0.02, 0, 1e3);
  options_.norm_epsilon = folder.number("layer_norm_eps", 1e-12, 0, 1);
  const auto padding = folder.config().find("pad_token_id");
  if (padding == folder.config().end() || !padding->is_null())
    padding_ = folder.integer("pad_token_id", is_bert ? 0 : 1, 0, vocabulary_ - 1);
  if (is_bert) return;
  if (!padding_) folder.refuse("pad_token_id", "positions are counted from it");
  skips_padding_ = true;
  first_position_ = *padding_ + 1;
  if (first_position_ >= positions_)
    folder.refuse("max_position_embeddings",
                  fmt::format("positions begin behind pad_token_id, at {}", first_position_));
}

void TextEncoder::check_settings(const config::Encoder& config) const {
  const auto require = [&](bool good, const char* field, const std::string& problem) {
    if (!good) throw Error(ExitCode::kBadConfig, fmt::format("{}.{}: {}", block_, field, problem));
  };
  const int64_t layers = config.layer() > 0 ? config.layer() : layers_in_file_;
  require(config.layer() <= layers_in_file_, "layer",
          fmt::format("is {}, but {} has {}", config.layer(), printable(folder_->path()),
                      plural(layers_in_file_, "layer")));
  require(config.layer() == 0 || !config.weighted_layers(), "weighted_layers",
          "is the sum of all layers' outputs, and layer asks for one of them: set one of the two");
  require(config.top_layers() <= layers, "top_layers",
          fmt::format("is {}, but the encoder has {}", config.top_layers(), plural(layers, "layer")));
  const std::string of_speech = "is for speech encoders; this one takes text";
  require(!config.spec_augment(), "spec_augment", of_speech);
  require(config.layerdrop() == 0, "layerdrop", of_speech);
  require(config.feature_projection_dropout() == 0, "feature_projection_dropout", of_speech);
  require(config.max_seconds() == 0, "max_seconds", of_speech);
}

std::vector<ParameterSpec> TextEncoder::specs() const {
  std::vector<ParameterSpec> specs;
  const Initial weight = Initial::normal(initial_deviation_);
  const auto with_padding = [&](bool has_padding) {
    Initial initial = weight;
    if (has_padding && padding_) initial.zero_row = *padding_;
    return initial;
  };
  // Whether and how what was added since `begin` is trained; `behind`: layers between it and the encoder's output.
  const auto mark = [&](size_t begin, bool trained, int64_t behind) {
    for (size_t i = begin; i < specs.size(); ++i) {
      specs[i].in_encoder = true;
      specs[i].trained = trained;
      specs[i].learning_rate_scale = scale_ * std::pow(decay_, static_cast<double>(behind));
    }
  };
  const std::string embeddings = prefix_ + "embeddings.";
  specs.push_back({embeddings + "word_embeddings.weight", {vocabulary_, dim_}, with_padding(true)});
  specs.push_back({embeddings + "position_embeddings.weight", {positions_, dim_}, with_padding(skips_padding_)});
  specs.push_back({embeddings + "token_type_embeddings.weight", {types_, dim_}, weight});
  add_layer_norm(specs, embeddings + "LayerNorm", dim_);
  mark(0, trains_embeddings_, layers_);
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
    mark(begin, layer >= first_trained_, layers_ - 1 - layer);
  }
  // Not pretrained: learnt at the model's rate, also on top of an encoder that is frozen.
  if (weighted_) {
    specs.push_back({prefix_ + "layer_weights", {layers_ + 1}, Initial::constant(0)});
    specs.back().in_encoder = true;
  }
  return specs;
}

TextEncoder::Ids TextEncoder::ids_of(const batch::Ragged& raw, const std::vector<int64_t>& batch_index) const {
  if (raw.values.dim() != 2 || raw.values.scalar_type() != at::kLong || raw.values.size(1) < 1 ||
      raw.values.size(1) > 2)
    throw Error(ExitCode::kBadData,
                fmt::format("{}: a text encoder takes rows of a token id and, perhaps, a token type id", block_));
  const at::Tensor host = raw.values.to(at::kCPU).contiguous();
  const int64_t* values = host.const_data_ptr<int64_t>();
  const int64_t columns = host.size(1), rows = raw.rows();
  Ids ids;
  for (auto* each : {&ids.words, &ids.positions, &ids.types}) each->reserve(static_cast<size_t>(rows));
  for (int64_t sample = 0; sample < raw.samples(); ++sample) {
    const auto refuse = [&](const std::string& problem) {
      throw Error(ExitCode::kBadData,
                  fmt::format("{} ({}): sample {} of the batch: {}", block_, printable(folder_->path()),
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
                           raw.length(sample), most_rows(), block_, most_rows()));
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
    const at::Tensor& weight = parameters[fmt::format("{}embeddings.{}.weight", prefix_, table)];
    return at::embedding(weight, kernels::upload(which, weight.device()), padding.value_or(-1));
  };
  const at::Tensor sum = look_up("word_embeddings", ids.words, padding_) +
                         look_up("token_type_embeddings", ids.types, std::nullopt) +
                         look_up("position_embeddings", ids.positions, skips_padding_ ? padding_ : std::nullopt);
  const at::Tensor x = layer_norm(parameters, prefix_ + "embeddings.LayerNorm", sum, options_.norm_epsilon);
  return kernels::dropout(x, step.training ? options_.hidden_dropout : 0, rows.offsets, rows.batch_index,
                          step.dropout(first_dropout_layer_));
}

batch::Ragged TextEncoder::encode(const Parameters& parameters, const batch::Ragged& raw,
                                  const std::vector<int64_t>& batch_index, const StepContext& any_step) const {
  StepContext step = any_step;
  step.training = step.training && !is_frozen_;  // what is frozen computes as in evaluation
  const bool with_graph = at::GradMode::is_enabled();
  const SampleRows rows{raw.offsets, batch_index};
  const at::Tensor shares = weighted_ ? parameters[prefix_ + "layer_weights"].softmax(0) : at::Tensor();
  at::Tensor sum;
  const auto add = [&](int64_t state, const at::Tensor& x) {
    if (!weighted_) return;
    const at::Tensor part = x * shares.select(0, state);
    sum = sum.defined() ? sum + part : part;
  };
  at::Tensor x;
  {
    const at::AutoGradMode gradients(with_graph && trains_embeddings_);
    x = embed(parameters, ids_of(raw, batch_index), rows, step);
  }
  add(0, x);
  for (int64_t layer = 0; layer < layers_; ++layer) {
    {
      const at::AutoGradMode gradients(with_graph && layer >= first_trained_);
      const std::string name = layer_name(layer);
      const TransformerLayerNames names{name + "attention.self.query",
                                        name + "attention.self.key",
                                        name + "attention.self.value",
                                        name + "attention.output.dense",
                                        name + "attention.output.LayerNorm",
                                        name + "intermediate.dense",
                                        name + "output.dense",
                                        name + "output.LayerNorm"};
      const auto dropout = first_dropout_layer_ + 1 + static_cast<uint32_t>(layer) * kDropoutLayersPerTransformerLayer;
      x = transformer_layer(parameters, names, options_, x, rows, step, dropout);
    }
    add(layer + 1, x);
  }
  return {weighted_ ? sum : x, raw.offsets};
}

}  // namespace

std::unique_ptr<Encoder> make_text_encoder(const config::Encoder& config, const std::string& path_of_block,
                                           std::shared_ptr<const PretrainedFolder> folder, const std::string& prefix,
                                           uint32_t first_dropout_layer) {
  return std::make_unique<TextEncoder>(config, path_of_block, std::move(folder), prefix, first_dropout_layer);
}

}  // namespace muster::models
