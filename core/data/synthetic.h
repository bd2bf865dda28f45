#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "core/data/dataset.h"

namespace muster::data {

// Data with a known structure, for trying muster and for tests: the signal is spread over the modalities, so that each
// alone is clearly worse than all together. Every number is a pure function of (seed, sample, modality, frame, column),
// computed when it is asked for: any rank may read any frames, and all get the same.
//
// kClassification, "synthetic-iemocap": classes happy, neutral, sad, angry (3 : 3 : 2 : 2); audio (32 wide, 20 to 60
// frames) and vision (24 wide, 10 to 30 frames). A class is two hidden bits: a (happy or neutral against sad or angry)
// and b (happy or sad against neutral or angry). Audio's own bit is a, vision's is b. A modality shows +-own times one
// fixed direction of its own bit plus +-other times one of the other bit, on a random contiguous third of the frames
// (its place and length are not shared between modalities). With g = SyntheticSignal::agreement:
//   own^2 = (1 - g) 2.6^2 + g (2.6^2 + 0.5^2) / 2,   other^2 = (1 - g) 0.5^2 + g (2.6^2 + 0.5^2) / 2:
// 2.6 and 0.5 at g = 0, both 1.872 at g = 1, own^2 + other^2 the same for all g.
// On top come a random offset per sample (0.3 per column), an offset per group (0.15), and noise * N(0, 1) per value.
// Groups Ses01 .. Ses05 of nearly equal size, in file order. Fixed splits: Ses05 is test, a tenth of the others valid.
//
// kRegression, "synthetic-mosi": text (24 wide, 5 to 25 frames), audio (12, 10 to 50), vision (16, 10 to 40). Each
// modality m has a hidden z_m ~ N(0, 1); label = z_text + z_audio + z_vision + N(0, 0.25^2), clipped to [-3, 3] and
// rounded to multiples of 0.2. A modality shows only its own z_m: 3 z_m times one fixed direction, on a random
// contiguous third of the frames, plus noise * N(0, 1). Groups are videos of 3 to 7 consecutive samples, which never
// straddle the fixed splits (60, 15 and 25 % train, valid and test). Further text encoders are text_b (32 wide, 2.7
// z_text) and text_c (16 wide, 2.4 z_text): the same words seen otherwise, with text's number of frames and place of
// the signal, but with a direction and noise of their own.
//
// Raw data for encoders, "synthetic-iemocap-raw": the samples, labels, groups and splits of kClassification, but audio
// is a waveform and text are tokens (core/data/synthetic_raw.cpp has the formulas). Audio's own bit is a, text's is b.
// A modality shows its own bit rightly in 95 % of the samples and the other bit in 60 %, on a random contiguous third.
// Audio: 16000 Hz, 0.3 to 1.5 s; a tone of 400 or 1200 Hz for bit a and one of 2000 or 3200 Hz for bit b, over a hum of
// the group and noise. Text: ids below 64, 4 to 20 of them, the first 2 and the last 3; words of the bits have ids of
// their own, all others mean nothing.
enum class SyntheticKind { kClassification, kRegression };

// What is planted, for studies that must find it, or find nothing. Whatever it says, all other numbers stay as they
// are: ids, labels, splits, lengths, noise, offsets, and the signal of modalities that it does not concern.
struct SyntheticSignal {
  std::set<std::string> without;  // names of modalities that show nothing of the label or of the hidden values
  double agreement = 0;           // classification only, 0 to 1: how far audio and vision show the same bits, as above
  int64_t text_encoders = 1;      // regression only, 1 to 3: text; text and text_b; text, text_b and text_c
  bool raw = false;               // classification only, without agreement: a waveform and tokens in place of features
};

// `noise`: standard deviation of what is added to every value; of raw data, as its formulas say. Throws
// Error(kBadConfig) unless 1 <= samples <= 10,000,000, 0 <= noise <= 1000, and `signal` fits the kind.
std::unique_ptr<Dataset> make_synthetic(SyntheticKind kind, int64_t samples, double noise, uint64_t seed,
                                        const SyntheticSignal& signal = {});

}  // namespace muster::data
