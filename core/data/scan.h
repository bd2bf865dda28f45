#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace muster::data {

// One NaN or infinite feature.
struct NonFinite {
  std::string modality;
  int64_t sample = 0;  // position in dataset order
  std::string id;      // the sample's
  int64_t frame = 0;   // within the sample, from 0
  int64_t column = 0;  // feature, from 0
  float value = 0;
};

struct ScanReport {
  int64_t values = 0;            // looked at
  int64_t non_finite = 0;        // of these
  std::vector<NonFinite> first;  // the first max_listed in order (sample, modality, frame, column)

  static constexpr int max_listed = 10;

  // Adds the report of other samples of the same dataset (another rank's share); any order gives the same result.
  void merge(const ScanReport& other);
};

// Looks for non-finite features in samples [first_sample, end_sample) of the given modalities (positions in
// index().modalities). Reads blocks of a few MiB. `progress`, where given, is called now and then with the number of
// samples done and the number to do. Throws what Dataset::read_frames throws.
ScanReport scan_values(const Dataset& dataset, const std::vector<int64_t>& modalities, int64_t first_sample,
                       int64_t end_sample, const std::function<void(int64_t done, int64_t total)>& progress = {});

// Sentences for a person: how many values, and the first ones. Empty when all are finite.
std::string describe(const ScanReport& report);

}  // namespace muster::data
