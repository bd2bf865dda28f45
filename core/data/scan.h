#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/data/dataset.h"

namespace muster::data {

// One value that cannot be used: NaN or infinite, or, of tokens, no id.
struct BadValue {
  std::string modality;
  int64_t sample = 0;  // position in dataset order
  std::string id;      // the sample's
  int64_t frame = 0;   // within the sample, from 0
  int64_t column = 0;  // feature, from 0; of tokens 1: the segment id
  float value = 0;
};

// Waveforms of a modality, which are expected in [-1, 1].
struct WaveformRange {
  int64_t samples = 0;  // that have the modality
  int64_t outside = 0;  // of these, with a finite value outside
  float largest = 0;    // magnitude of such a value
  int64_t sample = -1;  // the first that has it; -1: none
  std::string id;       // this sample's

  void merge(const WaveformRange& other);
};

struct ScanReport {
  int64_t values = 0;                              // looked at
  int64_t non_finite = 0;                          // of these
  bool in_waveform = false;                        // whether some of them are of a waveform
  int64_t bad_ids = 0;                             // of these: negative, or not below id_limit; of tokens only
  int64_t bad_segments = 0;                        // of these: segment ids that are numbers but not below `segments`
  int64_t vocabulary = 0, segments = 0;            // ids of tokens, of segments are below this; 0: id_limit
  std::vector<BadValue> first;                     // the first max_listed in order (sample, modality, frame, column)
  std::map<std::string, int64_t> largest_id;       // by modality of tokens: the largest good id, -1 without any
  std::map<std::string, WaveformRange> waveforms;  // by modality

  bool is_good() const { return non_finite == 0 && bad_ids == 0; }

  static constexpr int max_listed = 10;

  // Adds the report of other samples of the same dataset (another rank's share); any order gives the same result.
  void merge(const ScanReport& other);
};

// Ids of tokens are below the first, those of segments below the second.
using IdLimits = std::pair<int64_t, int64_t>;

// Looks for non-finite values and, in tokens, for numbers that are no ids, in samples [first_sample, end_sample) of the
// given modalities (positions in index().modalities). limits: per modality, of tokens; empty: id_limit for all. Reads
// blocks of a few MiB. `progress`, where given, is called now and then with the number of samples done and the number
// to do. Throws what Dataset::read_frames throws.
ScanReport scan_values(const Dataset& dataset, const std::vector<int64_t>& modalities, int64_t first_sample,
                       int64_t end_sample, const std::function<void(int64_t done, int64_t total)>& progress = {},
                       const std::vector<IdLimits>& limits = {});

// Sentences for a person: how many values, and the first ones. Empty when all are good.
std::string describe(const ScanReport& report);

// What may be wrong although it can be used: waveforms outside [-1, 1].
std::vector<std::string> warnings(const ScanReport& report);

}  // namespace muster::data
