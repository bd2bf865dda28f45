#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/batch/prefetch.h"
#include "core/models/model.h"
#include "core/training/global_batch.h"
#include "distributed/communicator.h"
#include "distributed/tree_sum.h"

namespace muster::training {

// What one global batch gave. Loss values are of the whole global batch and the same on every rank. They stay where
// they were computed until somebody asks: on a GPU asking means waiting for it.
struct BatchOutcome {
  std::vector<models::LossTerm> row_and_batch_terms;  // names and weights
  at::Tensor values;                                  // float64 [terms], unweighted
  at::Tensor outputs;                                 // this rank's rows [own rows, outputs], detached

  at::Tensor total() const;  // float64 scalar: sum of weight * term
  double loss() const { return total().item<double>(); }
  std::vector<std::pair<std::string, double>> terms() const;  // unweighted
};

struct StepOptions {
  int64_t microbatches = 0;   // pieces of every global batch; 0: one per rank, not with reproducible
  bool reproducible = false;  // sums over microbatches in one fixed order: the same bits on any number of ranks
  bool bf16 = false;          // forward passes under bfloat16 autocast
};

// The step: exact losses and gradients of a global batch on any number of ranks, without any differentiable
// communication.
//   1  embed own microbatches          2  gather the detached embeddings of all
//   3  batch-wide losses on them, the same everywhere: their value and gradient
//   4  per own microbatch: its rows' losses, and one backward pass seeded with 1 and with 3's gradient for its rows
//   5  sum gradients over microbatches and ranks
class Step {
 public:
  // All must outlive the step.
  Step(models::Model& model, const batch::BatchReader& reader, distributed::Communicator& communicator,
       const StepOptions& options);

  // How this step shares out a global batch.
  GlobalBatchPlan plan(std::vector<int64_t> samples) const;

  // train() will be asked for this global batch next, after those expected before it. Its frames are read while others
  // compute.
  void expect(std::vector<int64_t> samples);

  // Leaves the gradient of the global batch's loss, summed over ranks, in model.parameters().gradients(). Collective.
  BatchOutcome train(const GlobalBatchPlan& plan, uint64_t seed, uint32_t step);

  // The same losses without gradients or dropout; MEM's negatives are drawn with a step number of their own, so that
  // they repeat in every evaluation. with_losses false (data without labels): outputs only. Collective.
  BatchOutcome evaluate(const GlobalBatchPlan& plan, uint64_t seed, uint32_t batch_number, bool with_losses);

  // After train() gave a non-finite loss or gradient, with unchanged weights: computes the step again to find which
  // microbatches it comes from. Returns sentences that name ranks, loss terms and sample ids, the same on every rank.
  // Collective.
  std::string diagnose(const GlobalBatchPlan& plan, uint64_t seed, uint32_t step);

 private:
  struct Gathered {
    std::vector<batch::Batch> batches;
    std::vector<models::Embedded> embedded;
    at::Tensor rows;  // [N, embedding_dim], a leaf; undefined when nothing is compared
  };
  // expected: take the batches that expect() has asked for. gather: exchange embeddings.
  Gathered embed_and_gather(const GlobalBatchPlan& plan, const models::StepContext& context, bool expected,
                            bool gather);
  // Frames of the partners of a microbatch; `partners`: of all of this rank's rows.
  std::vector<batch::Ragged> read_hard_negatives(const GlobalBatchPlan& plan, const GlobalBatchPlan::Rows& rows,
                                                 const std::vector<models::HardNegatives>& partners) const;
  using MicrobatchVisitor =
      std::function<void(const GlobalBatchPlan::Rows&, const models::ForwardOutput&, const at::Tensor& weighted_total)>;
  // Steps 1 to 4: leaves this rank's part of the gradient in the parameters; `visit` sees each microbatch after its
  // backward pass. Returns the batch-wide losses.
  std::vector<at::Tensor> forward_backward(const GlobalBatchPlan& plan, const models::StepContext& context,
                                           bool expected, const MicrobatchVisitor& visit);
  models::GlobalBatch global_batch(const GlobalBatchPlan& plan, bool with_labels);
  // Adds the row terms of all microbatches up, in their order, and joins them with the batch-wide ones, which every
  // rank has whole. row_values: per own microbatch, float64 [row terms].
  void finish_losses(BatchOutcome& outcome, const GlobalBatchPlan& plan, const std::vector<at::Tensor>& row_values,
                     const std::vector<at::Tensor>& batch_losses);

  models::Model& model_;
  const batch::BatchReader& reader_;
  distributed::Communicator& communicator_;
  StepOptions options_;
  std::optional<distributed::TreeSum> tree_sum_;  // reproducible only
  std::deque<std::vector<int64_t>> expected_;     // global batches that the prefetcher has been asked for
  batch::Prefetcher prefetcher_;
};

}  // namespace muster::training
