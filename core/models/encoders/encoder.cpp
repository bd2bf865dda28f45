#include "core/models/encoders/encoder.h"

#include <stdexcept>

namespace muster::models {
namespace {

class Chain final : public Encoder {
 public:
  Chain(std::unique_ptr<Encoder> first, std::unique_ptr<Encoder> second)
      : first_(std::move(first)), second_(std::move(second)) {}

  data::ModalityKind input() const override { return first_->input(); }
  int64_t sample_rate() const override { return first_->sample_rate(); }
  int64_t dim() const override { return second_->dim(); }
  std::pair<int64_t, int64_t> id_limits() const override { return first_->id_limits(); }
  int64_t frames_of(int64_t rows) const override { return second_->frames_of(first_->frames_of(rows)); }
  int64_t fewest_rows() const override { return first_->fewest_rows(); }
  int64_t most_rows() const override { return first_->most_rows(); }

  std::vector<ParameterSpec> specs() const override {
    auto specs = first_->specs();
    const auto more = second_->specs();
    specs.insert(specs.end(), more.begin(), more.end());
    return specs;
  }

  std::vector<std::string> ignored_tensors() const override { return first_->ignored_tensors(); }

  bool is_pretrained() const override { return first_->is_pretrained(); }
  void load(Parameters& parameters) const override {
    first_->load(parameters);
    second_->load(parameters);
  }

  batch::Ragged encode(const Parameters& parameters, const batch::Ragged& raw, const std::vector<int64_t>& batch_index,
                       const StepContext& step) const override {
    return second_->encode(parameters, first_->encode(parameters, raw, batch_index, step), batch_index, step);
  }

 private:
  std::unique_ptr<Encoder> first_, second_;
};

class Precomputed final : public Encoder {
 public:
  explicit Precomputed(std::unique_ptr<Encoder> encoder) : encoder_(std::move(encoder)) {}

  int64_t dim() const override { return encoder_->dim(); }
  std::vector<ParameterSpec> specs() const override { return encoder_->specs(); }
  std::vector<std::string> ignored_tensors() const override { return encoder_->ignored_tensors(); }
  bool is_pretrained() const override { return encoder_->is_pretrained(); }
  void load(Parameters& parameters) const override { encoder_->load(parameters); }

  batch::Ragged encode(const Parameters&, const batch::Ragged& frames, const std::vector<int64_t>&,
                       const StepContext&) const override {
    return frames;
  }

 private:
  std::unique_ptr<Encoder> encoder_;
};

}  // namespace

std::unique_ptr<Encoder> chained(std::unique_ptr<Encoder> first, std::unique_ptr<Encoder> second) {
  if (!first) return second;
  if (!second) return first;
  return std::make_unique<Chain>(std::move(first), std::move(second));
}

std::unique_ptr<Encoder> precomputed(std::unique_ptr<Encoder> encoder) {
  if (encoder->is_trained()) throw std::logic_error("precomputed: the encoder is trained");
  return std::make_unique<Precomputed>(std::move(encoder));
}

}  // namespace muster::models
