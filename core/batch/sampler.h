#pragma once

#include <cstdint>
#include <vector>

// Which samples make up each global batch: pure functions of (seed, epoch), the same on every rank and for any number
// of ranks.
namespace muster::batch {

enum class Sampling { kShuffle, kClassBalanced, kSequential };

// The samples of one epoch in training order; as many as `samples` has.
// kShuffle: every sample once, ordered by one random 64-bit key each. kClassBalanced: independent draws, the class
// uniformly among those present, then a sample uniformly within it; `labels` (aligned with `samples`) is needed for
// this only.
std::vector<int64_t> epoch_order(const std::vector<int64_t>& samples, const std::vector<double>& labels,
                                 Sampling sampling, uint64_t seed, uint32_t epoch);

}  // namespace muster::batch
