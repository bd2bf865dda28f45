#pragma once

#include <deque>
#include <optional>

#include "core/batch/global_batch.h"
#include "core/batch/modality_dropout.h"
#include "core/batch/plan.h"
#include "core/batch/prefetch.h"

namespace muster::batch {

// The batches of a run from one step on, in the order of its plan, for one pass:
//     for (const LoadedBatch& batch : Batches(plan, reader, division, steps_done, dropout)) ...
// While one is being computed with, a thread reads the next. Throws what reading throws.
class Batches {
 public:
  // `plan` and `reader` must outlive this.
  Batches(TrainingPlan& plan, const BatchReader& reader, const Division& division, uint64_t first_step,
          const ModalityDropout& dropout);

  struct End {};
  class Iterator {
   public:
    explicit Iterator(Batches& batches) : batches_(batches) {}
    const LoadedBatch& operator*() const { return *batches_.current_; }
    Iterator& operator++() {
      batches_.advance();
      return *this;
    }
    bool operator!=(End) const { return batches_.current_.has_value(); }

   private:
    Batches& batches_;
  };
  Iterator begin() { return Iterator(*this); }
  End end() const { return {}; }

 private:
  void advance();

  TrainingPlan& plan_;
  const BatchReader& reader_;
  const Division division_;
  const ModalityDropout dropout_;
  Prefetcher prefetcher_;
  uint64_t next_step_;               // to be asked of the prefetcher
  std::deque<LoadedBatch> awaited_;  // asked for; their microbatches are still missing
  std::optional<LoadedBatch> current_;
};

}  // namespace muster::batch
