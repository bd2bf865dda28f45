#pragma once

#include <string>
#include <vector>

#include "base/problems.h"
#include "core/data/container.h"
#include "core/data/dataset.h"
#include "core/data/hdf5_reader.h"

namespace muster::data {

// Everything of a container but the frames, and where these are.
struct ContainerIndex {
  DatasetIndex index;
  std::vector<hdf5::StoredDataset> values;  // one per modality, same order
  std::vector<std::string> targets;         // names in /samples/targets
};

// Reads and checks the whole structure of an open file. What is wrong is added to `problems`; the result is good only
// when none were. Call with hdf5::library_mutex() held.
ContainerIndex read_container_index(const hdf5::File& file, const std::string& path, const OpenOptions& options,
                                    Problems& problems);

}  // namespace muster::data
