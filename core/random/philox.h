#pragma once

#include <array>
#include <cmath>
#include <cstdint>

// Random numbers without state. Every random choice of muster is a pure function of (seed, site, step or epoch, sample,
// element), so it can depend neither on the number of ranks nor on what was drawn before, and nothing need be saved.
namespace muster::random {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11), the generator of Random123,
// cuRAND and PyTorch. Key: the two halves of the seed, low first. Returns four independent uniform 32-bit words.
inline std::array<uint32_t, 4> philox4x32(uint64_t seed, std::array<uint32_t, 4> counter) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The third counter word says what the numbers are for, so that no two uses share any. MEM's negatives (counter =
// column, row, direction, step; docs/models.md) use 0 and 1.
enum Site : uint32_t {
  kMemNegativeVision = 0,
  kMemNegativeAudio = 1,
  kInitialWeights = 2,
  kShuffle = 3,
  kClassBalanced = 4,
  kValidationShare = 5,
  kSynthetic = 6,                // .. 15
  kDropout = 16,                 // .. upwards: one per dropout layer and pass, see core/kernels/dropout.h
  kPerturbedDrop = 0xFFFFFFF0u,  // core/data/perturbed.h
  kPerturbedNoise,
  kModalityDropout,
};

// Uniform in (0, 1): 24 bits of a word, centred, so that neither end occurs and float and double agree exactly.
inline double uniform(uint32_t word) { return ((word >> 8) + 0.5) * 0x1p-24; }

// Two independent standard normal numbers from two words (Box and Muller).
inline std::array<double, 2> normal_pair(uint32_t word0, uint32_t word1) {
  const double radius = std::sqrt(-2.0 * std::log(uniform(word0)));
  const double angle = 6.283185307179586476925286766559 * uniform(word1);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

// 64 uniform bits for sort keys and integer draws.
inline uint64_t bits64(uint64_t seed, std::array<uint32_t, 4> counter) {
  const auto words = philox4x32(seed, counter);
  return (uint64_t{words[1]} << 32) | words[0];
}

}  // namespace muster::random
