#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "core/batch/global_batch.h"
#include "core/models/model.h"
#include "distributed/communicator.h"

namespace muster::training {

// Frames of other samples that a microbatch's rows are paired with (MEM's negatives). Where the model sees the data
// file's rows, any rank reads any sample's; encoded frames exist once, on the rank that owns the sample: they are
// fetched from there, and their gradients go back there. Owners add these in the order of the user's global row, so
// that the sum depends on no number of ranks.
class PartnerFrames {
 public:
  // Whether frames are exchanged at all. Then every rank must know the partners of all rows; otherwise those of its own
  // rows are enough.
  static bool are_exchanged(const models::Model& model, const batch::GlobalBatch& global);

  // partners: as Model::hard_negatives gives them, of the global rows from `begin` on. All must outlive it.
  PartnerFrames(const models::Model& model, const batch::BatchReader& reader, const batch::GlobalBatch& global,
                const std::vector<models::HardNegatives>& partners, int64_t begin,
                distributed::Communicator& communicator);

  // own: this rank's microbatches with encoded frames. Collective.
  void fetch(const std::vector<batch::Batch>& own);

  // The partners' frames for the rows of the own microbatch of this number, per partner list; leaves that want a
  // gradient where the frames are encoded, `with_gradient` holds, and the encoder is trained.
  std::vector<batch::Ragged> of_microbatch(size_t microbatch, bool with_gradient);

  // Takes the gradients of those leaves, after the microbatch's backward pass.
  void keep_gradients(size_t microbatch, const std::vector<batch::Ragged>& leaves);

  // Adds what all ranks have for this rank's frames to `gradients`: [frames, dim] by own microbatch and modality.
  // Collective.
  void give_back(std::vector<std::vector<at::Tensor>>& gradients);

 private:
  struct List {
    int64_t modality;
    bool encoded;
    std::vector<int64_t> partner;       // global row of the partner of each global row; -1 where it is not known
    at::Tensor pool;                    // fetched and own frames
    std::vector<int64_t> first;         // where each global row's frames begin in the pool; -1: not there
    std::vector<at::Tensor> gradients;  // per own microbatch
  };

  int64_t frames(int64_t modality, int64_t row) const;
  int owner_of(int64_t row) const;
  std::vector<int64_t> used_by(const List& list, int user, int owner) const;

  const models::Model& model_;
  const batch::BatchReader& reader_;
  const batch::GlobalBatch& global_;
  distributed::Communicator& communicator_;
  std::vector<int64_t> first_row_;  // of each rank, and their end
  std::vector<List> lists_;
};

}  // namespace muster::training
