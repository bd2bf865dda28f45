#include "core/models/encoders/pretrained_encoder.h"

#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace muster::models {

PretrainedEncoder::PretrainedEncoder(const EncoderBlock& block, const std::string& stack)
    : block_(block), stack_(stack), layers_in_folder_(folder().integer("num_hidden_layers", 12, 1, 1'000)) {
  const config::Encoder& config = block.config;
  layers_ = config.layer() > 0 ? config.layer() : layers_in_folder_;
  require(layers_ <= layers_in_folder_, "layer",
          fmt::format("is {}, but {} has {}", layers_, printable(folder().path()), plural(layers_in_folder_, "layer")));
  require(config.top_layers() <= layers_, "top_layers",
          fmt::format("is {}, but the encoder has {}", config.top_layers(), plural(layers_, "layer")));
  is_frozen_ = config.train() == config::Encoder::FROZEN;
  trains_all_ = config.train() == config::Encoder::ALL;
  first_trained_ = is_frozen_ ? layers_ : trains_all_ || config.top_layers() == 0 ? 0 : layers_ - config.top_layers();
}

void PretrainedEncoder::require(bool good, const char* field, const std::string& problem) const {
  if (!good) throw Error(ExitCode::kBadConfig, fmt::format("{}.{}: {}", block_.path, field, problem));
}

void PretrainedEncoder::match(PretrainedFolder::Names names) {
  names_ = std::move(names);
  names_.optional.push_back("layer_weights");
  for (int64_t layer = layers_; layer < layers_in_folder_; ++layer)
    names_.ignored.push_back(fmt::format("{}{}.", stack_, layer));
  folder().check(specs(), names_);
}

StepContext PretrainedEncoder::as_trained(StepContext step) const {
  step.training = step.training && !is_frozen_;
  return step;
}

void PretrainedEncoder::mark(std::vector<ParameterSpec>& specs, size_t begin, bool trained, int64_t behind) const {
  const config::Encoder& config = block_.config;
  const double scale = config.has_learning_rate_scale() ? config.learning_rate_scale() : 1,
               decay = config.has_layer_decay() ? config.layer_decay() : 1;
  for (size_t i = begin; i < specs.size(); ++i) {
    specs[i].in_encoder = true;
    specs[i].trained = trained;
    specs[i].learning_rate_scale = scale * std::pow(decay, static_cast<double>(behind));
    // Matrices come from the files and need not be drawn first; a vector may be missing there.
    if (is_pretrained() && specs[i].shape.size() > 1) specs[i].initial = Initial::constant(0);
  }
}

void PretrainedEncoder::add_layer_weights(std::vector<ParameterSpec>& specs) const {
  if (!block_.config.weighted_layers()) return;
  // Not pretrained: learnt at the model's rate, also on top of an encoder that is frozen.
  specs.push_back({prefix() + "layer_weights", {layers_ + 1}, Initial::constant(0)});
  specs.back().in_encoder = true;
}

at::Tensor PretrainedEncoder::through_layers(
    const Parameters& parameters, at::Tensor x,
    const std::function<at::Tensor(int64_t layer, const at::Tensor& x)>& layer_output) const {
  const bool weighted = block_.config.weighted_layers();
  const at::Tensor shares = weighted ? parameters[prefix() + "layer_weights"].softmax(0) : at::Tensor();
  at::Tensor sum = weighted ? x * shares.select(0, 0) : at::Tensor();
  for (int64_t layer = 0; layer < layers_; ++layer) {
    {
      const at::AutoGradMode gradients(at::GradMode::is_enabled() && layer >= first_trained_);
      x = layer_output(layer, x);
    }
    // As in transformers' hidden_states, the last layer's output is taken without the final norm.
    if (weighted) sum = sum + x * shares.select(0, layer + 1);
  }
  return weighted ? sum : x;
}

}  // namespace muster::models
