#pragma once

#include <string>
#include <vector>

#include "core/config/experiment.pb.h"
#include "core/models/model.h"

namespace muster::models {

// MIAR: tokens that stand for what each modality takes from the others, contrastively aligned, gated and regressed.
// Only the abstract of the paper is public; everything beyond it is this project's reading (docs/models.md). Modalities
// are any two or more, in the batch's order; each may be missing for a sample, but not all.
class Miar final : public Model {
 public:
  struct Sizes {
    std::vector<std::string> modalities;
    std::vector<int64_t> dims;
    int64_t outputs;
    data::Task task;
  };
  Miar(const config::Miar& config, const Sizes& sizes, DecayScope decay, at::ScalarType dtype, uint64_t seed);

  int64_t embedding_dim() const override;
  // gate_<stream>: how the head's input weighs the streams; of each sample the sum is 1.
  std::vector<std::string> detail_names() const override;
  Embedded embed(const batch::Batch& batch, const StepContext& step) const override;
  std::vector<at::Tensor> batch_losses(const at::Tensor& gathered, const GlobalBatch& global,
                                       const losses::Partition& partition) const override;
  ForwardOutput forward(const batch::Batch& batch, const Embedded& embedded,
                        const std::vector<batch::Ragged>& negative_frames, const GlobalBatch& global,
                        const StepContext& step) const override;

 private:
  int64_t modality_count() const { return static_cast<int64_t>(sizes_.modalities.size()); }

  config::Miar config_;
  Sizes sizes_;
  std::vector<std::string> streams_;  // the modalities, then "joint"
};

}  // namespace muster::models
