#pragma once

#include <map>
#include <string>
#include <vector>

#include "checkpoints/manifest.h"
#include "checkpoints/safetensors.h"

// How the tensors of a state are divided among the ranks that write them, and put together again.
namespace muster::checkpoints {

// Rows [first_row, first_row + rows) of a tensor; the whole of one without dimensions.
struct Piece {
  std::size_t tensor = 0;  // index
  int64_t first_row = 0;
  int64_t rows = 1;
};

// The pieces of each rank, in the order of `tensors`. Their bytes, in that order, are cut into as equal contiguous runs
// as rows allow. A tensor without elements belongs to rank 0.
std::vector<std::vector<Piece>> share_out(const std::vector<TensorInfo>& tensors, int ranks);

// A rank's safetensors file: what comes before the data, and the pieces as their bytes lie in it.
struct ShardLayout {
  std::vector<Piece> pieces;
  std::string head;  // header length and header
  uint64_t data_size = 0;
};

// The header's metadata tells PyTorch's distributed checkpoint (HuggingFaceStorageReader) where split tensors belong.
// Throws Error(kBadData) when a name is not UTF-8.
ShardLayout lay_out_shard(const std::vector<TensorInfo>& tensors, std::vector<Piece> pieces);

// First row of each tensor of a shard, from its metadata. Throws Error(kBadData) naming `file`.
std::map<std::string, int64_t> first_rows(const SafetensorsHeader& header, const std::string& file);

// Checks that shards cover every tensor of a manifest once.
class Coverage {
 public:
  // `tensors` must outlive this.
  explicit Coverage(const std::vector<TensorInfo>& tensors) : tensors_(tensors), covered_(tensors.size()) {}

  // Throws Error(kBadData) for a tensor or rows that the manifest does not have.
  void add(const std::string& file, const SafetensorsHeader& header);
  // After all files: throws Error(kBadData), naming `path`, for rows that are duplicated or missing.
  void require_complete(const std::string& path);

 private:
  struct Rows {
    int64_t first, count;
    std::string file;
  };
  const std::vector<TensorInfo>& tensors_;
  std::vector<std::vector<Rows>> covered_;  // by tensor
};

// The index of a tensor of a manifest by its name; tensors.size() when there is none.
std::size_t find_tensor(const std::vector<TensorInfo>& tensors, const std::string& name);

}  // namespace muster::checkpoints
