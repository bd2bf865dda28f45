#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

// Reading and writing the safetensors format (https://huggingface.co/docs/safetensors): an 8-byte little-endian header
// length, a JSON header, the tensors' bytes without gaps.
namespace muster::checkpoints {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

struct SafetensorsFile {
  std::map<std::string, at::Tensor> tensors;  // CPU, contiguous, each owning its memory
  std::map<std::string, std::string> metadata;
};

// Passes the file's bytes to `sink` in order. The bytes depend on nothing but the arguments, not even on the order of
// `tensors`, and are those of the public safetensors package (which does not order metadata: equal up to one key):
// tensors by dtype, so that each is aligned to its element size, then by name. A tensor on another device or with
// strides is copied, one at a time. Dtypes: float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool. Throws
// std::invalid_argument for an undefined or sparse tensor, another dtype, a repeated name, or the reserved name
// "__metadata__"; Error(kBadData) for a name or metadata text that is not UTF-8.
void serialize_safetensors(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata,
                           const std::function<void(std::string_view)>& sink);

// serialize_safetensors to a file that appears whole or not at all (see AtomicFile). Also throws Error(kIo).
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata);

// Reads a whole file. Trusts nothing in it: throws Error(kBadData) naming file and tensor for anything that is not a
// legal safetensors file of the dtypes above, before allocating more than the file's size; Error(kIo) if it cannot be
// read.
SafetensorsFile read_safetensors(const std::string& path);

// Whether all bytes are 0 or 1. A C++ bool that holds another one is undefined behaviour, so such a file must not
// become a tensor.
bool holds_booleans(const void* bytes, uint64_t count);

}  // namespace muster::checkpoints
