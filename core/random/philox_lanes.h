#pragma once

#include <cstdint>

// philox4x32 for many neighbouring counters at once, in vector instructions: the same numbers.
namespace muster::random {

constexpr int64_t kLanes = 16;

// All words of philox4x32(seed, {first + lane, word1, word2, word3}): words[4 * lane + i], room for 4 * kLanes.
void philox_lanes(uint64_t seed, uint32_t first, uint32_t word1, uint32_t word2, uint32_t word3, uint32_t* words);

// Their first words only: words[lane], room for kLanes.
void philox_first_words(uint64_t seed, uint32_t first, uint32_t word1, uint32_t word2, uint32_t word3, uint32_t* words);

}  // namespace muster::random
