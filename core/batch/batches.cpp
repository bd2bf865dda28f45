#include "core/batch/batches.h"

namespace muster::batch {
namespace {

// A whole batch of this rank may lie ready.
int64_t microbatches_ahead(const Division& division) {
  const auto owners = microbatch_boundaries(division);
  return std::max<int64_t>(2, owners[division.rank + 1] - owners[division.rank]);
}

}  // namespace

Batches::Batches(TrainingPlan& plan, const BatchReader& reader, const Division& division, uint64_t first_step,
                 const ModalityDropout& dropout)
    : plan_(plan),
      reader_(reader),
      division_(division),
      dropout_(dropout),
      prefetcher_(reader, microbatches_ahead(division)),
      next_step_(first_step) {
  advance();
}

void Batches::advance() {
  current_.reset();
  // The batch after this one is asked for before this one is waited for, so that reading never pauses.
  while (awaited_.size() < 2 && next_step_ < plan_.total_steps()) {
    LoadedBatch batch;
    batch.number = next_step_++;
    batch.epoch = plan_.epoch_of(batch.number);
    batch.global = make_global_batch(reader_, plan_.samples(batch.number), division_);
    batch.global.presence = dropout_.left_of(batch.global.presence, batch.number);
    for (const auto& rows : batch.global.own_microbatches)
      prefetcher_.request(samples_of(batch.global, rows), positions_of(rows),
                          batch.global.presence.narrow(0, rows.begin, rows.size()));
    awaited_.push_back(std::move(batch));
  }
  if (awaited_.empty()) return;
  LoadedBatch batch = std::move(awaited_.front());
  awaited_.pop_front();
  for (size_t m = 0; m < batch.global.own_microbatches.size(); ++m) batch.microbatches.push_back(prefetcher_.next());
  current_ = std::move(batch);
}

}  // namespace muster::batch
