#include "core/batch/global_batch.h"

#include <numeric>

namespace muster::batch {

std::vector<int64_t> microbatch_boundaries(const Division& division) {
  return even_boundaries(division.microbatches > 0 ? division.microbatches : division.ranks, division.ranks);
}

GlobalBatch divide(std::vector<int64_t> samples, const Division& division) {
  GlobalBatch global;
  global.samples = std::move(samples);
  const auto owners = microbatch_boundaries(division);
  const auto rows = even_boundaries(global.size(), owners.back());
  const int64_t filled = std::min(global.size(), owners.back());
  for (int r = 0; r < division.ranks; ++r) {
    global.row_counts.push_back(rows[owners[r + 1]] - rows[owners[r]]);
    global.filled_counts.push_back(std::min(owners[r + 1], filled) - std::min(owners[r], filled));
  }
  const int64_t first = owners[division.rank], last = owners[division.rank + 1];
  global.own = {rows[first], rows[last], first};
  for (int64_t piece = first; piece < last; ++piece)
    if (rows[piece + 1] > rows[piece]) global.own_microbatches.push_back({rows[piece], rows[piece + 1], piece});
  return global;
}

GlobalBatch make_global_batch(const BatchReader& reader, std::vector<int64_t> samples, const Division& division,
                              bool with_labels) {
  GlobalBatch global = divide(std::move(samples), division);
  global.presence = reader.presence(global.samples);
  if (with_labels && reader.dataset().index().has_labels()) global.labels = reader.labels(global.samples);
  return global;
}

std::vector<int64_t> positions_of(const Rows& rows) {
  std::vector<int64_t> positions(rows.size());
  std::iota(positions.begin(), positions.end(), rows.begin);
  return positions;
}

std::vector<int64_t> samples_of(const GlobalBatch& global, const Rows& rows) {
  return {global.samples.begin() + rows.begin, global.samples.begin() + rows.end};
}

LoadedBatch read_batch(const BatchReader& reader, std::vector<int64_t> samples, const Division& division,
                       uint64_t number, bool with_labels) {
  LoadedBatch batch;
  batch.number = number;
  batch.global = make_global_batch(reader, std::move(samples), division, with_labels);
  for (const auto& rows : batch.global.own_microbatches) {
    batch.microbatches.push_back(reader.read(samples_of(batch.global, rows), positions_of(rows)));
    if (!with_labels) batch.microbatches.back().labels = at::Tensor();
  }
  return batch;
}

}  // namespace muster::batch
