#include "core/random/philox_lanes.h"

#include "core/random/function_multiversioning.h"

namespace muster::random {
namespace {

// Structure of arrays, so that it vectorises. Always inlined, into the version that the loader picked.
__attribute__((always_inline)) inline void rounds(uint64_t seed, uint32_t* c0, uint32_t* c1, uint32_t* c2,
                                                  uint32_t* c3) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const uint64_t product0 = uint64_t{0xD2511F53u} * c0[i];
      const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2[i];
      c0[i] = static_cast<uint32_t>(product1 >> 32) ^ c1[i] ^ key0;
      c2[i] = static_cast<uint32_t>(product0 >> 32) ^ c3[i] ^ key1;
      c1[i] = static_cast<uint32_t>(product1);
      c3[i] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

__attribute__((always_inline)) inline void counters(uint32_t first, uint32_t word1, uint32_t word2, uint32_t word3,
                                                    uint32_t* c0, uint32_t* c1, uint32_t* c2, uint32_t* c3) {
  for (int64_t i = 0; i < kLanes; ++i) {
    c0[i] = first + static_cast<uint32_t>(i);
    c1[i] = word1;
    c2[i] = word2;
    c3[i] = word3;
  }
}

}  // namespace

MUSTER_CPU_VERSIONS
void philox_lanes(uint64_t seed, uint32_t first, uint32_t word1, uint32_t word2, uint32_t word3, uint32_t* words) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  counters(first, word1, word2, word3, c0, c1, c2, c3);
  rounds(seed, c0, c1, c2, c3);
  for (int64_t i = 0; i < kLanes; ++i) {
    words[4 * i] = c0[i];
    words[4 * i + 1] = c1[i];
    words[4 * i + 2] = c2[i];
    words[4 * i + 3] = c3[i];
  }
}

MUSTER_CPU_VERSIONS
void philox_first_words(uint64_t seed, uint32_t first, uint32_t word1, uint32_t word2, uint32_t word3,
                        uint32_t* words) {
  uint32_t c1[kLanes], c2[kLanes], c3[kLanes];
  counters(first, word1, word2, word3, words, c1, c2, c3);
  rounds(seed, words, c1, c2, c3);
}

}  // namespace muster::random
