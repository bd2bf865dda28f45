#include "core/models/model.h"

namespace muster::models {

void Model::put_in_front(std::vector<std::unique_ptr<Encoder>> encoders) {
  std::vector<ParameterSpec> specs;
  encoders_.resize(std::max(encoders_.size(), encoders.size()));
  for (size_t m = 0; m < encoders.size(); ++m) {
    if (!encoders[m]) continue;
    for (auto& spec : encoders[m]->specs()) specs.push_back(std::move(spec));
    encoders_[m] = chained(std::move(encoders[m]), std::move(encoders_[m]));
  }
  if (!specs.empty()) parameters_ = parameters_.with(specs);
}

void Model::load_pretrained() {
  for (const auto& encoder : encoders_)
    if (encoder && encoder->is_pretrained()) encoder->load(parameters_);
}

}  // namespace muster::models
