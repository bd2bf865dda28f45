#include "core/data/dataset.h"

namespace muster::data {

int64_t DatasetIndex::find_modality(const std::string& modality_name) const {
  for (size_t position = 0; position < modalities.size(); ++position) {
    if (modalities[position].name == modality_name) return static_cast<int64_t>(position);
  }
  return -1;
}

}  // namespace muster::data
