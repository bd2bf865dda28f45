#pragma once

#include <cstdint>
#include <vector>

#include "core/batch/reader.h"
#include "core/models/model.h"

namespace muster::training {

// One global batch and who computes what of it: an ordered list of samples, cut into contiguous microbatches as equal
// as possible; rank r owns a contiguous run of them. The same on every rank.
class GlobalBatchPlan {
 public:
  // microbatches 0: one per rank. More microbatches than samples leave the last ones empty.
  GlobalBatchPlan(std::vector<int64_t> samples, int64_t microbatches, int rank, int ranks);

  const std::vector<int64_t>& samples() const { return samples_; }
  int64_t size() const { return static_cast<int64_t>(samples_.size()); }
  const std::vector<int64_t>& row_counts() const { return row_counts_; }  // per rank

  // A run of rows of the global batch.
  struct Rows {
    int64_t begin;
    int64_t end;
    int64_t microbatch;  // number of the first microbatch that it holds
    int64_t size() const { return end - begin; }
  };
  Rows own() const { return own_; }
  // This rank's microbatches, without empty ones.
  const std::vector<Rows>& own_microbatches() const { return own_microbatches_; }
  // Microbatches that are not empty: the first ones.
  int64_t filled_microbatches() const { return std::min(size(), microbatches()); }
  int64_t microbatches() const { return owners_.back(); }
  // Rank r owns the microbatches [owners()[r], owners()[r + 1]).
  const std::vector<int64_t>& owners() const { return owners_; }
  // Per rank, how many of its microbatches are not empty.
  std::vector<int64_t> filled_counts() const;

  std::vector<int64_t> samples_of(const Rows& rows) const;
  std::vector<int64_t> batch_index_of(const Rows& rows) const;
  batch::Batch read(const batch::BatchReader& reader, const Rows& rows) const;
  // What every rank knows of the whole batch; gradients are wanted for this rank's own rows.
  models::GlobalBatch global(const batch::BatchReader& reader, bool with_labels) const;

 private:
  std::vector<int64_t> samples_;
  std::vector<int64_t> row_counts_;
  std::vector<int64_t> owners_;
  Rows own_{0, 0, 0};
  std::vector<Rows> own_microbatches_;
};

}  // namespace muster::training
