#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/batch/ragged.h"
#include "core/data/dataset.h"
#include "core/models/parameters.h"
#include "core/models/step_context.h"

namespace muster::models {

// What stands between a modality's raw rows in the data file and the frames that the model sees: a pretrained speech or
// text encoder, an adapter, or several in a row. A pure function of one sample: what it gives for a sample depends on
// no other one, and its random choices are keyed by the sample. Its parameters are part of the model's.
class Encoder {
 public:
  virtual ~Encoder() = default;

  // Width of the frames.
  virtual int64_t dim() const = 0;

  // What it takes: rows of this kind and, of waveforms, this sample rate (0: any).
  virtual data::ModalityKind input() const { return data::ModalityKind::kFeatures; }
  virtual int64_t sample_rate() const { return 0; }

  // Of tokens: ids are below the first, segment (token type) ids below the second.
  virtual std::pair<int64_t, int64_t> id_limits() const { return {data::id_limit, data::id_limit}; }

  // Frames that a sample with `rows` raw rows has; 0 for 0. Known to every rank without computing anything.
  virtual int64_t frames_of(int64_t rows) const { return rows; }

  // The fewest raw rows that give a frame.
  virtual int64_t fewest_rows() const { return 1; }

  // The most raw rows that a sample may have, whatever they are.
  virtual int64_t most_rows() const { return std::numeric_limits<int64_t>::max(); }

  // All its parameters, with whether and how they are trained; names are complete ("encoders.audio..."). in_encoder is
  // set. Where load() puts values in place, they need not start at random.
  virtual std::vector<ParameterSpec> specs() const = 0;

  // Whether any of them is trained: only then do its frames need a gradient.
  bool is_trained() const {
    if (!is_trained_) {
      const auto all = specs();
      is_trained_ = std::any_of(all.begin(), all.end(), [](const ParameterSpec& spec) { return spec.trained; });
    }
    return *is_trained_;
  }

  // Tensors of its pretrained weights' files that it does not need (heads), for a note.
  virtual std::vector<std::string> ignored_tensors() const { return {}; }

  // Whether load() has values to put in place; otherwise its parameters start as specs() says.
  virtual bool is_pretrained() const { return false; }
  // Puts the pretrained values in place. Throws Error(kBadData, kIo).
  virtual void load(Parameters& parameters) const {}

  // raw: the modality's rows as core/batch/reader.h gives them, of whole samples. batch_index: place of each sample in
  // the global batch. Returns the samples' frames, in the parameters' dtype (or bfloat16 under autocast), with a graph
  // unless gradients are off or nothing of it is trained.
  virtual batch::Ragged encode(const Parameters& parameters, const batch::Ragged& raw,
                               const std::vector<int64_t>& batch_index, const StepContext& step) const = 0;

 private:
  mutable std::optional<bool> is_trained_;
};

// The same work as `first`, and then `second` on the frames that it gives.
std::unique_ptr<Encoder> chained(std::unique_ptr<Encoder> first, std::unique_ptr<Encoder> second);

// What stands in a model in place of an encoder whose frames were computed beforehand: it takes these frames and passes
// them on. Its parameters and their pretrained values are the encoder's, of which none may be trained.
std::unique_ptr<Encoder> precomputed(std::unique_ptr<Encoder> encoder);

// Dropout layers of the encoder of the modality at this place in the experiment's list: [first, first + 2^16).
constexpr uint32_t first_dropout_layer(int64_t position) {
  return (uint32_t{1} << 24) + (static_cast<uint32_t>(position) << 16);
}

}  // namespace muster::models
