#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace muster::data {

// What a person wants to know about a dataset: sizes, lengths, missing modalities, labels, splits, groups, non-finite
// values and bad ids, storage and content hash. Reads all of the data. Throws what Dataset::read_frames throws.
nlohmann::json inspect_json(const Dataset& dataset);

// The same as a table of text lines, ending in a newline.
std::string inspect(const Dataset& dataset);

// Everything wrong with a file that muster can find: structure, labels, non-finite values and bad ids. Empty: the file
// is good. warnings, where given: gets what may be wrong in a good file. Throws Error(kIo) when the file cannot be
// read.
std::vector<std::string> verify(const std::string& path, std::vector<std::string>* warnings = nullptr);

}  // namespace muster::data
