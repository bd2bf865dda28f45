#pragma once

#include <string>

#include "core/data/dataset.h"

namespace muster::data {

// Writes a dataset to a new container at `path`, with contiguous float32 frames (int32 for tokens), replacing a file
// already there. The file appears complete or not at all: it is written under another name in the same folder,
// synchronised and renamed. Throws Error(kIo) when it cannot be written (folder missing, disk full); nothing is left
// behind then.
void write_container(const std::string& path, const Dataset& dataset);

}  // namespace muster::data
