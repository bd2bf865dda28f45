#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/models/model.h"
#include "core/training/global_batch.h"
#include "distributed/communicator.h"

namespace muster::training {

// What one global batch gave. Loss values are of the whole global batch and the same on every rank.
struct BatchOutcome {
  double loss = 0;                                     // sum of weight * term
  std::vector<std::pair<std::string, double>> terms;  // unweighted
  at::Tensor outputs;                                  // this rank's rows [own rows, outputs], detached
};

// The step: exact losses and gradients of a global batch on any number of ranks, without any differentiable communication.
//   1  embed own microbatches          2  gather the detached embeddings of all
//   3  batch-wide losses on them, the same everywhere: their value and gradient
//   4  per own microbatch: its rows' losses, and one backward pass seeded with 1 and with 3's gradient for its rows
//   5  sum gradients over ranks
class Step {
 public:
  // All must outlive the step. bf16: run forward passes under bfloat16 autocast.
  Step(models::Model& model, const batch::BatchReader& reader, distributed::Communicator& communicator, bool bf16);

  // Leaves the gradient of the global batch's loss, summed over ranks, in model.parameters().gradients(). Collective.
  BatchOutcome train(const GlobalBatchPlan& plan, uint64_t seed, uint32_t step);

  // The same losses without gradients or dropout; MEM's negatives are drawn with a step number of their own, so that they repeat
  // in every evaluation. with_losses false (data without labels): outputs only. Collective.
  BatchOutcome evaluate(const GlobalBatchPlan& plan, uint64_t seed, uint32_t batch_number, bool with_losses);

  // After train() gave a non-finite loss or gradient, with unchanged weights: computes the step again to find which microbatches it
  // comes from. Returns sentences that name ranks, loss terms and sample ids, the same on every rank. Collective.
  std::string diagnose(const GlobalBatchPlan& plan, uint64_t seed, uint32_t step);

 private:
  struct Gathered {
    std::vector<batch::Batch> batches;
    std::vector<models::Embedded> embedded;
    at::Tensor rows;  // [N, embedding_dim], a leaf; undefined when nothing is compared
  };
  Gathered embed_and_gather(const GlobalBatchPlan& plan, const models::Pass& pass);
  std::vector<batch::Ragged> read_partners(const GlobalBatchPlan& plan, const GlobalBatchPlan::Rows& rows, const at::Tensor& gathered,
                                           const models::GlobalBatch& global, const models::Pass& pass) const;
  using MicrobatchVisitor =
      std::function<void(const GlobalBatchPlan::Rows&, const models::RowResult&, const at::Tensor& weighted_total)>;
  // Steps 1 to 4: leaves this rank's part of the gradient in the parameters; `visit` sees each microbatch after its backward pass.
  // Returns the batch-wide terms.
  std::vector<models::LossTerm> forward_backward(const GlobalBatchPlan& plan, const models::Pass& pass,
                                                 const MicrobatchVisitor& visit);
  // Sums the row terms over ranks and combines them with the batch-wide ones, which every rank has whole.
  void finish_losses(BatchOutcome& outcome, at::Tensor row_values, const std::vector<models::LossTerm>& batch_terms);

  models::Model& model_;
  const batch::BatchReader& reader_;
  distributed::Communicator& communicator_;
  bool bf16_;
};

}  // namespace muster::training
