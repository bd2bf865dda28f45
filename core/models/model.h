#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/batch/global_batch.h"
#include "core/losses/partition.h"
#include "core/models/encoders/encoder.h"
#include "core/models/parameters.h"
#include "core/models/step_context.h"

namespace muster::models {

using batch::GlobalBatch;

// A term of the loss. Its value is a scalar that is already divided by global counts, so that values add up over
// microbatches and ranks.
struct LossTerm {
  std::string name;
  double weight = 1;
};

// Result of the first pass over a microbatch of n samples.
struct Embedded {
  at::Tensor rows;               // [n, embedding_dim()], differentiable: what batch-wide losses compare
  std::vector<at::Tensor> kept;  // whatever forward() needs again, graphs included
};

// Frames of other samples that forward() needs (MEM's negatives): row i of the requested range is paired with the
// frames that global row batch_index[i] has in one modality (position in the experiment's list).
struct HardNegatives {
  int64_t modality = 0;
  std::vector<int64_t> batch_index;
};

struct ForwardOutput {
  at::Tensor outputs;              // [n, outputs]: class logits, or [n, 1] values
  std::vector<at::Tensor> losses;  // one per row_terms(); none without labels
  at::Tensor details;              // [n, detail_names()], detached; undefined without names
};

// A model and its losses as pure single-process functions; the training step calls them in this order:
//   encoder(m)->encode(own microbatches) -> embed(own microbatches) -> gather
//   -> batch_losses(all rows) and hard_negatives(own rows; all, where frames are encoded) -> forward(own microbatches).
// embed() and forward() see what the encoders give: batch.modalities are the encoded frames.
// All losses are divided by counts of the global batch, so that summing over microbatches and ranks gives the loss of
// the global batch and its exact gradient.
class Model {
 public:
  virtual ~Model() = default;

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  // What encodes the modality at this place in the experiment's list; nullptr: the model sees the data file's rows.
  const Encoder* encoder(int64_t position) const {
    return position < static_cast<int64_t>(encoders_.size()) ? encoders_[position].get() : nullptr;
  }
  // Puts encoders, one per modality or nullptr, in front of the model and of what it has itself (adapters). Their
  // parameters join the model's.
  void put_in_front(std::vector<std::unique_ptr<Encoder>> encoders);
  // Puts the encoders' pretrained values in place. Throws Error(kBadData, kIo).
  void load_pretrained();

  int64_t outputs() const { return outputs_; }
  // The terms whose values forward() and batch_losses() return, in this order. Ranks without rows know them too.
  const std::vector<LossTerm>& row_terms() const { return row_terms_; }
  const std::vector<LossTerm>& batch_terms() const { return batch_terms_; }

  // What forward() tells of each sample beside its outputs, for people who look into the model: names of columns, such
  // as "gate_audio". They must not begin with "probability_".
  virtual std::vector<std::string> detail_names() const { return {}; }

  // Columns of Embedded::rows; 0: nothing is compared across the batch, and there are no batch_terms().
  virtual int64_t embedding_dim() const { return 0; }

  virtual Embedded embed(const batch::Batch& batch, const StepContext& step) const { return {}; }

  // One value per batch_terms(). gathered: [N, embedding_dim()] in global order. Every rank computes the same values
  // and gradients, including those of the losses' own parameters (such as a temperature): the caller keeps these on
  // rank 0 only. partition: how ranks share the work; it changes no bit of the result.
  virtual std::vector<at::Tensor> batch_losses(const at::Tensor& gathered, const GlobalBatch& global,
                                               const losses::Partition& partition) const {
    return {};
  }

  // Which other samples' (encoded) frames forward() needs for the global rows [begin, end). Deterministic; empty when
  // none are needed or none exist, which is then so for every row of the global batch.
  virtual std::vector<HardNegatives> hard_negatives(const at::Tensor& gathered, const GlobalBatch& global,
                                                    int64_t begin, int64_t end, const StepContext& step) const {
    return {};
  }

  // `negative_frames`: the frames that hard_negatives() asked for, for the rows of this microbatch.
  virtual ForwardOutput forward(const batch::Batch& batch, const Embedded& embedded,
                                const std::vector<batch::Ragged>& negative_frames, const GlobalBatch& global,
                                const StepContext& step) const = 0;

  // Bounds on parameters, applied after each optimizer step.
  virtual void project_parameters() {}

  // The learnt temperature of a contrastive loss, where the model has one.
  virtual std::optional<double> temperature() const { return std::nullopt; }

 protected:
  Model(Parameters parameters, int64_t outputs, std::vector<LossTerm> row_terms, std::vector<LossTerm> batch_terms = {})
      : parameters_(std::move(parameters)),
        outputs_(outputs),
        row_terms_(std::move(row_terms)),
        batch_terms_(std::move(batch_terms)) {}

  Parameters parameters_;
  std::vector<std::unique_ptr<Encoder>> encoders_;  // per modality; empty: none. A model may bring its own.

 private:
  int64_t outputs_;
  std::vector<LossTerm> row_terms_, batch_terms_;
};

}  // namespace muster::models
