#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/batch/ragged.h"
#include "core/kernels/dropout.h"
#include "core/losses/partition.h"
#include "core/models/parameters.h"
#include "core/random/philox.h"

namespace muster::models {

// Which pass over which step: what random choices are keyed by.
struct StepContext {
  uint64_t seed = 0;
  uint32_t step = 0;
  bool training = false;  // false: no dropout

  // Key of the model's dropout layer number `layer`.
  kernels::DropoutKey dropout(uint32_t layer) const { return {seed, step, random::kDropout + layer}; }
};

// A term of the loss. `value` is a scalar, already divided by global counts, so that terms add up over microbatches and
// ranks.
struct LossTerm {
  std::string name;
  at::Tensor value;  // undefined where only name and weight are asked for
  double weight = 1;
};

// What every rank knows about the whole global batch without communicating.
struct GlobalBatch {
  at::Tensor labels;        // [N], on the CPU; undefined when the data has none
  at::Tensor presence;      // [N, modalities] bool, on the CPU
  losses::Partition partition;  // of the batch-wide losses

  int64_t size() const { return presence.size(0); }
};

// Result of the first pass over a microbatch of n samples.
struct Embedded {
  at::Tensor rows;               // [n, embedding_dim()], differentiable: what batch-wide losses compare
  std::vector<at::Tensor> kept;  // whatever `rows` needs again, graphs included
};

// Frames of other samples that `rows` needs (MEM's negatives): row i of the asked-for range is paired with the frames
// that global row batch_index[i] has in one modality (position in the experiment's list).
struct HardNegatives {
  int64_t modality = 0;
  std::vector<int64_t> batch_index;
};

struct ForwardOutput {
  at::Tensor outputs;  // [n, outputs]: class logits, or [n, 1] values
  std::vector<LossTerm> terms;
};

// A model and its losses as pure single-process functions; the training step calls them in this order:
//   embed(own microbatches) -> gather -> batch_losses(all rows) and hard_negatives(all rows) -> rows(own microbatches).
// All losses are divided by counts of the global batch, so that summing over microbatches and ranks gives the loss of
// the global batch and its exact gradient.
class Model {
 public:
  virtual ~Model() = default;

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  virtual int64_t outputs() const = 0;
  // Columns of Embedded::rows; 0: nothing is compared across the batch.
  virtual int64_t embedding_dim() const = 0;

  // Names and weights of the terms that rows() returns when there are labels: a rank without rows must know them too.
  virtual std::vector<LossTerm> row_terms() const = 0;

  virtual Embedded embed(const batch::Batch& batch, const StepContext& step) const = 0;

  // gathered: [N, embedding_dim()] in global order. The same on every rank, parameters' own gradients included (such as
  // the temperature's): the caller lets them count once.
  virtual std::vector<LossTerm> batch_losses(const at::Tensor& gathered, const GlobalBatch& global) const = 0;

  // Which other samples' frames `rows` needs for the global rows [begin, end). Deterministic; empty when none are
  // needed or none exist, which is then so for every row of the global batch.
  virtual std::vector<HardNegatives> hard_negatives(const at::Tensor& gathered, const GlobalBatch& global, int64_t begin,
                                            int64_t end, const StepContext& step) const {
    return {};
  }

  // `negative_frames`: the frames that hard_negatives() asked for, for the rows of this microbatch.
  virtual ForwardOutput rows(const batch::Batch& batch, const Embedded& embedded,
                         const std::vector<batch::Ragged>& negative_frames, const GlobalBatch& global,
                         const StepContext& step) const = 0;

  // Bounds on parameters, applied after each optimizer step.
  virtual void project_parameters() {}

 protected:
  explicit Model(Parameters parameters) : parameters_(std::move(parameters)) {}

  Parameters parameters_;
};

}  // namespace muster::models
