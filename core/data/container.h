#pragma once

#include <memory>
#include <string>

#include "core/data/dataset.h"

namespace muster::data {

struct OpenOptions {
  std::string target;            // "": /samples/label, otherwise /samples/targets/<target>
  bool labels_required = false;  // true: a file without the labels is refused
};

// How the frames of one modality lie in the file.
struct FrameStorage {
  std::string type;          // "float32", "int16" ..., followed by " big-endian" where that is so
  bool direct = false;       // contiguous and little-endian: read with pread(2), no HDF5 involved
  std::string layout;        // "contiguous", "compact", "chunked" or "chunked, gzip+shuffle" ...
  int64_t stored_bytes = 0;  // what it takes up in the file
};

// A dataset in a file ("muster-dataset" version 1, see docs/data.md).
class Container : public Dataset {
 public:
  // By position in index().modalities.
  const std::vector<FrameStorage>& storage() const { return storage_; }
  int64_t file_bytes() const { return file_bytes_; }
  // Names in /samples/targets, sorted.
  const std::vector<std::string>& targets() const { return targets_; }

 protected:
  std::vector<FrameStorage> storage_;
  int64_t file_bytes_ = 0;
  std::vector<std::string> targets_;
};

// Opens a container and checks all of its structure; frames are not read. For a target other than /samples/label the
// task is classification when the target is of an integer type and the file's task is classification, otherwise
// regression. Throws Error(kBadData) that lists every structural problem (the first 20), with the path of the dataset
// and the id of the sample; Error(kIo) when the file is missing or cannot be read.
std::unique_ptr<Container> open_container(const std::string& path, const OpenOptions& options = {});

// The same problems, one per line; empty when the container is good. Throws Error(kIo) when the file cannot be read.
std::vector<std::string> container_problems(const std::string& path, const OpenOptions& options);

// Whether a file is such a dataset, good or damaged, and no other HDF5 file.
bool is_container(const std::string& path);

}  // namespace muster::data
