#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/input_file.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/safetensors.h"

namespace muster::checkpoints {

// Reads one file of a checkpoint from start to end, once: the checksum is computed from the very bytes that are used.
// Nothing may be trusted before finish() has returned. Throws Error(kBadData) for what is wrong with the
// file, Error(kIo) when it cannot be read.
class ShardReader {
 public:
  // Reads the header.
  ShardReader(const std::string& folder, const CheckpointFile& file);

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }
  const std::string& header_json() const { return json_; }
  // Names of the tensors as their bytes lie in the file.
  const std::vector<std::string>& order() const { return order_; }

  // The next tensor of order(); only its checksum when out is nullptr. progress: bytes read so far, in portions.
  void read(void* out, const std::function<void(uint64_t)>& progress = {});
  // After the last one: compares the checksum.
  void finish();

 private:
  std::string path_;
  CheckpointFile expected_;
  InputFile input_;
  SafetensorsHeader header_;
  std::string json_;
  std::vector<std::string> order_;
  std::size_t next_ = 0;
  uint64_t position_ = 0;
  uint32_t crc_ = 0;
};

// Throws Error(kBadData) when there is no ordinary file of that size, Error(kIo) when that cannot be determined.
void look_up(const std::string& folder, const CheckpointFile& file);

// The bytes of the manifest of a checkpoint, an ordinary file of at most kLargestManifest bytes. Throws likewise.
std::string read_manifest_bytes(const std::string& path);

}  // namespace muster::checkpoints
