#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/batch/global_batch.h"
#include "core/models/model.h"
#include "core/training/partner_frames.h"
#include "distributed/communicator.h"
#include "distributed/tree_sum.h"

namespace muster::training {

// What one global batch gave. Loss values are of the whole global batch and the same on every rank. They stay where
// they were computed until they are asked for: on a GPU that means waiting for it.
struct BatchOutcome {
  std::vector<models::LossTerm> row_and_batch_terms;  // names and weights
  at::Tensor values;                                  // float64 [terms], unweighted
  at::Tensor outputs;                                 // this rank's rows [own rows, outputs], detached
  at::Tensor details;                                 // evaluate() only: [own rows, the model's detail_names()]

  at::Tensor total() const;  // float64 scalar: sum of weight * term
  double loss() const { return total().item<double>(); }
  std::vector<std::pair<std::string, double>> terms() const;  // unweighted
};

struct StepOptions {
  int64_t microbatches = 0;   // pieces of every global batch; 0: one per rank, not with reproducible
  bool reproducible = false;  // sums over microbatches in one fixed order: the same bits on any number of ranks
  bool bf16 = false;          // forward passes under bfloat16 autocast
  // Encoders keep no graph between 1 and 7, and run again in 7: one microbatch's memory instead of all.
  bool recompute_encoders = false;
};

// The step: exact losses and gradients of a global batch on any number of ranks, without any differentiable
// communication. What encoders give is a cut: everything behind it sees leaves, and everything before it gets one
// backward pass at the end.
//   1  encode and embed own microbatches          2  gather the detached embeddings of all
//   3  batch-wide losses on them, the same everywhere: their value and gradient; partners are chosen
//   4  encoded frames of partners that other ranks own come from these ranks
//   5  per own microbatch: its rows' losses, and one backward pass seeded with 1 and with 3's gradient for its rows
//   6  gradients of other ranks' frames go back to these ranks
//   7  per own microbatch: the encoders' backward pass
//   8  sum gradients over microbatches and ranks
// Without encoders 4, 6 and 7 are nothing: any rank reads any sample's rows from the data file.
class Step {
 public:
  // All must outlive the step.
  Step(models::Model& model, const batch::BatchReader& reader, distributed::Communicator& communicator,
       const StepOptions& options);

  // How this step divides global batches among ranks.
  const batch::Division& division() const { return division_; }
  // A global batch for it, read now.
  batch::LoadedBatch read(std::vector<int64_t> samples, uint64_t number = 0, bool with_labels = true) const {
    return batch::read_batch(reader_, std::move(samples), division_, number, with_labels);
  }

  // Leaves the gradient of the global batch's loss, summed over ranks, in model.parameters().gradients(). Collective.
  BatchOutcome train(const batch::LoadedBatch& batch, uint64_t seed);

  // The same losses without gradients or dropout; MEM's negatives are drawn with a step number of their own, so that
  // they repeat in every evaluation. with_losses false (data without labels): outputs only. Collective.
  BatchOutcome evaluate(const batch::LoadedBatch& batch, uint64_t seed, bool with_losses);

  // After train() gave a non-finite loss or gradient, with unchanged weights: computes the step again to find which
  // microbatches it comes from. Returns sentences that name ranks, loss terms and sample ids, the same on every rank.
  // Collective.
  std::string diagnose(const batch::LoadedBatch& batch, uint64_t seed);

 private:
  // An own microbatch between its encoders and their backward pass.
  struct Encoded {
    batch::Batch batch;              // modalities: what the model sees; leaves where encoded
    std::vector<at::Tensor> frames;  // per modality: encoded, with their graph; undefined: none, or to be recomputed
    models::Embedded embedded;
  };
  struct Gathered {
    std::vector<Encoded> microbatches;  // own
    at::Tensor rows;                    // [N, embedding_dim], a leaf; undefined when nothing is compared
  };
  // Encoded frames of one modality, in the parameters' dtype.
  at::Tensor encode(const batch::Batch& raw, int64_t modality, const models::StepContext& context) const;
  Gathered embed_and_gather(const batch::LoadedBatch& batch, const models::StepContext& context, bool gather);
  // The partners that this batch's rows are paired with.
  PartnerFrames choose_partners(const Gathered& gathered, const batch::GlobalBatch& global,
                                const models::StepContext& context);
  // What sees each microbatch after its backward passes: after 5, with the losses, and after 7.
  struct MicrobatchVisitor {
    std::function<void(const batch::Rows&, const models::ForwardOutput&, const at::Tensor& weighted_total)> after_rows;
    std::function<void(const batch::Rows&)> after_encoders;
  };
  // Steps 1 to 7: leaves this rank's part of the gradient in the parameters. Returns the batch-wide losses.
  std::vector<at::Tensor> forward_backward(const batch::LoadedBatch& batch, const models::StepContext& context,
                                           const MicrobatchVisitor& visitor);
  // 6 and 7, and what `gathered` holds is gone.
  void encoders_backward(const batch::LoadedBatch& batch, const models::StepContext& context, Gathered& gathered,
                         PartnerFrames& partners, const MicrobatchVisitor& visitor);
  // How ranks share the work of a batch-wide loss; gradients are wanted for this rank's own rows.
  losses::Partition partition_of(const batch::GlobalBatch& global);
  // Adds the row terms of all microbatches up, in their order, and joins them with the batch-wide ones, which every
  // rank has whole. row_values: per own microbatch, float64 [row terms].
  void finish_losses(BatchOutcome& outcome, const batch::GlobalBatch& global, const std::vector<at::Tensor>& row_values,
                     const std::vector<at::Tensor>& batch_losses);

  models::Model& model_;
  const batch::BatchReader& reader_;
  distributed::Communicator& communicator_;
  StepOptions options_;
  batch::Division division_;
  // Reproducible only: of the model's own gradients, and of its encoders'.
  std::optional<distributed::TreeSum> model_sum_, encoder_sum_;
};

}  // namespace muster::training
