#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/checkpoint.h"

namespace muster::checkpoints {

struct TensorInfo {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
};

// What MANIFEST.pb says (manifest.proto).
struct Manifest {
  CheckpointInfo info;
  int world_size = 0;
  std::vector<CheckpointFile> files;  // one per rank, in rank order
  std::vector<TensorInfo> tensors;    // whole, in the order of their names, no name twice
};

constexpr char kManifestName[] = "MANIFEST.pb";
constexpr uint64_t kLargestManifest = 64 << 20;

// rank-<rank>-of-<ranks>.safetensors, or .retry<n>.safetensors of the n-th time after the first
std::string shard_name(int rank, int ranks, int retry);
constexpr int kMostRetries = 2;

// Throws Error(kInternal) for what parse_manifest would refuse.
std::string serialize_manifest(const Manifest& manifest);

// Trusts nothing: throws Error(kBadData) naming `file` when a single bit of `bytes` differs from what
// serialize_manifest gave, when the CRC fits but the contents make no sense (file names that are not exactly those of
// its ranks, shapes that overflow, tensors larger than the files), or when it is longer than kLargestManifest. Memory
// use is a small multiple of its size.
Manifest parse_manifest(std::string_view bytes, const std::string& file);

}  // namespace muster::checkpoints
