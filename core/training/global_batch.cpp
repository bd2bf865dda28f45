#include "core/training/global_batch.h"

#include <numeric>

namespace muster::training {

GlobalBatchPlan::GlobalBatchPlan(std::vector<int64_t> samples, int64_t microbatches, int rank, int ranks)
    : samples_(std::move(samples)) {
  const int64_t pieces = microbatches > 0 ? microbatches : ranks;
  const auto rows = batch::even_boundaries(size(), pieces);
  owners_ = batch::even_boundaries(pieces, ranks);
  for (int r = 0; r < ranks; ++r) row_counts_.push_back(rows[owners_[r + 1]] - rows[owners_[r]]);
  own_ = {rows[owners_[rank]], rows[owners_[rank + 1]], owners_[rank]};
  for (int64_t piece = owners_[rank]; piece < owners_[rank + 1]; ++piece)
    if (rows[piece + 1] > rows[piece]) own_microbatches_.push_back({rows[piece], rows[piece + 1], piece});
}

std::vector<int64_t> GlobalBatchPlan::filled_counts() const {
  const int64_t filled = filled_microbatches();
  std::vector<int64_t> counts;
  for (size_t r = 0; r + 1 < owners_.size(); ++r)
    counts.push_back(std::min(owners_[r + 1], filled) - std::min(owners_[r], filled));
  return counts;
}

std::vector<int64_t> GlobalBatchPlan::samples_of(const Rows& rows) const {
  return {samples_.begin() + rows.begin, samples_.begin() + rows.end};
}

std::vector<int64_t> GlobalBatchPlan::batch_index_of(const Rows& rows) const {
  std::vector<int64_t> batch_index(rows.size());
  std::iota(batch_index.begin(), batch_index.end(), rows.begin);
  return batch_index;
}

batch::Batch GlobalBatchPlan::read(const batch::BatchReader& reader, const Rows& rows) const {
  return reader.read(samples_of(rows), batch_index_of(rows));
}

models::GlobalBatch GlobalBatchPlan::global(const batch::BatchReader& reader, bool with_labels) const {
  models::GlobalBatch global;
  global.presence = reader.presence(samples_);
  if (with_labels) global.labels = reader.labels(samples_);
  global.partition.gradient_begin = own_.begin;
  global.partition.gradient_end = own_.end;
  return global;
}

}  // namespace muster::training
