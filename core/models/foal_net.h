#pragma once

#include "core/config/experiment.pb.h"
#include "core/losses/avel.h"
#include "core/models/model.h"

namespace muster::models {

// Foal-Net (arXiv 2408.09438): audio and video sequences, cross-attended in both directions, classified; trained
// together with audio-video expression alignment (AVEL) and cross-modal emotion matching (MEM). Parameter names follow
// the paper ("video"). A batch's modality 0 is audio, 1 is video; both must be present for every sample.
class FoalNet final : public Model {
 public:
  struct Sizes {
    int64_t audio_dim;
    int64_t video_dim;
    int64_t classes;
    data::Task task;
  };
  // The heads must divide adapter_output_dim or, where that is 0, both widths of `sizes`: make_model() sees to it.
  FoalNet(const config::FoalNet& config, const Sizes& sizes, DecayScope decay, at::ScalarType dtype, uint64_t seed);

  int64_t embedding_dim() const override;
  Embedded embed(const batch::Batch& batch, const StepContext& step) const override;
  std::vector<at::Tensor> batch_losses(const at::Tensor& gathered, const GlobalBatch& global,
                                       const losses::Partition& partition) const override;
  std::vector<HardNegatives> hard_negatives(const at::Tensor& gathered, const GlobalBatch& global, int64_t begin,
                                            int64_t end, const StepContext& step) const override;
  ForwardOutput forward(const batch::Batch& batch, const Embedded& embedded,
                        const std::vector<batch::Ragged>& negative_frames, const GlobalBatch& global,
                        const StepContext& step) const override;
  void project_parameters() override;
  std::optional<double> temperature() const override;

 private:
  enum class Kind { kMatched, kMismatched, kRecomputed };

  at::Tensor prepare(int64_t modality, const batch::Ragged& frames, const std::vector<int64_t>& batch_index, Kind kind,
                     const StepContext& step) const;
  at::Tensor project(int64_t modality, const at::Tensor& frames, const batch::Batch& batch,
                     const StepContext& step) const;
  at::Tensor fuse(int64_t query_modality, const at::Tensor& query, const std::vector<int64_t>& query_offsets,
                  const at::Tensor& context, const std::vector<int64_t>& context_offsets,
                  const std::vector<int64_t>& batch_index, Kind kind, const StepContext& step) const;
  losses::Similarity similarity() const;

  config::FoalNet config_;
};

}  // namespace muster::models
