#pragma once

#include <cstdint>
#include <memory>

#include "core/data/dataset.h"

namespace muster::data {

// Data with a known structure, for trying muster and for tests: the signal is spread over the modalities, so that each alone
// is clearly worse than all together. Every number is a pure function of (seed, sample, modality, frame, column), computed
// when it is asked for: any rank may read any frames, and all get the same.
//
// kClassification, "synthetic-iemocap": classes happy, neutral, sad, angry (3 : 3 : 2 : 2); audio (32 wide, 20 to 60 frames)
// and vision (24 wide, 10 to 30 frames). A class is two hidden bits: a (happy or neutral against sad or angry) and b. Audio
// shows mostly a and weakly b, vision mostly b and weakly a: as a signed multiple of one fixed direction per bit, on a random
// contiguous third of the frames. On top come a random offset per sample, an offset per group, and noise * N(0, 1) per value.
// Groups Ses01 .. Ses05 of nearly equal size, in file order. Fixed splits: Ses05 is test, a tenth of the others valid.
//
// kRegression, "synthetic-mosi": text (24 wide, 5 to 25 frames), audio (12, 10 to 50), vision (16, 10 to 40). Each modality m
// has a hidden z_m ~ N(0, 1); label = z_text + z_audio + z_vision + N(0, 0.25^2), clipped to [-3, 3] and rounded to multiples
// of 0.2. A modality shows only its own z_m: 3 z_m times one fixed direction, on a random contiguous third of the frames,
// plus noise * N(0, 1). Groups are videos of 3 to 7 consecutive samples, which never straddle the fixed splits (60, 15 and
// 25 % train, valid and test).
enum class SyntheticKind { kClassification, kRegression };

// `noise`: standard deviation of what is added to every value. Throws Error(kBadConfig) unless 1 <= samples <= 10,000,000 and
// 0 <= noise <= 1000.
std::unique_ptr<Dataset> make_synthetic(SyntheticKind kind, int64_t samples, double noise, uint64_t seed);

}  // namespace muster::data
