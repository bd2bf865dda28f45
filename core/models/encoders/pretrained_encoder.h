#pragma once

#include <fmt/format.h>

#include <functional>

#include "core/config/experiment.pb.h"
#include "core/models/encoders/encoder.h"
#include "core/models/encoders/pretrained_folder.h"

namespace muster::models {

// A block of the experiment, and the encoder that it is about.
struct EncoderBlock {
  config::Encoder config;
  std::string path;    // "encoders[I]", for messages
  std::string prefix;  // of its parameters' names: "encoders.audio."
  std::shared_ptr<const PretrainedFolder> folder;
  uint32_t first_dropout_layer = 0;
};

// What pretrained speech and text encoders have in common: a folder, and a stack of transformer layers of which the
// block says how many are computed, what is trained and how fast, and whether the encoder gives the last one's output
// or a learnt weighted sum of all layers' (hidden_states).
class PretrainedEncoder : public Encoder {
 public:
  std::vector<std::string> ignored_tensors() const final { return folder().ignored(names_); }
  bool is_pretrained() const final { return folder().has_weights(); }
  void load(Parameters& parameters) const final { folder().load(specs(), names_, parameters); }

 protected:
  // stack: how layers' names begin behind the prefix. Throws Error(kBadConfig) for more layers than there are.
  PretrainedEncoder(const EncoderBlock& block, const std::string& stack);

  // Throws Error(kBadConfig): "BLOCK.FIELD: PROBLEM".
  void require(bool good, const char* field, const std::string& problem) const;
  // At the end of a constructor: checks specs() against the folder, where layers that are not computed are ignored and
  // weights of the sum may be missing.
  void match(PretrainedFolder::Names names);

  const PretrainedFolder& folder() const { return *block_.folder; }
  const std::string& prefix() const { return block_.prefix; }
  std::string layer_name(int64_t layer) const { return fmt::format("{}{}{}.", prefix(), stack_, layer); }
  // What is frozen computes in training as in evaluation.
  StepContext as_trained(StepContext step) const;
  // Of specs since `begin`: whether and how they are trained. behind: layers between them and the encoder's output.
  void mark(std::vector<ParameterSpec>& specs, size_t begin, bool trained, int64_t behind) const;
  // The last layer's output for x, the first one's input, or the sum; with a graph from the first trained layer on.
  at::Tensor through_layers(const Parameters& parameters, at::Tensor x,
                            const std::function<at::Tensor(int64_t layer, const at::Tensor& x)>& layer_output) const;
  // Specs of the sum's weights, if there is one.
  void add_layer_weights(std::vector<ParameterSpec>& specs) const;

  const EncoderBlock block_;
  int64_t layers_ = 0;         // that are computed
  int64_t first_trained_ = 0;  // layer; layers_: none
  bool is_frozen_ = false, trains_all_ = false;

 private:
  std::string stack_;
  int64_t layers_in_folder_;
  PretrainedFolder::Names names_;
};

}  // namespace muster::models
