#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "core/data/dataset.h"

namespace muster::data {

// The raw data of core/data/synthetic.h, with the samples, labels, groups and splits of `features`, the index of its
// classification data. `without`: of audio and text, those that show nothing of the class.
std::unique_ptr<Dataset> make_raw_synthetic(const DatasetIndex& features, double noise, uint64_t seed,
                                            const std::set<std::string>& without);

}  // namespace muster::data
