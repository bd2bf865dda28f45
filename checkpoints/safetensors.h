#pragma once

#include <ATen/ATen.h>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/input_file.h"

// Reading and writing the safetensors format (https://huggingface.co/docs/safetensors): an 8-byte little-endian header
// length, a JSON header, the tensors' bytes without gaps.
namespace muster::checkpoints {

// The JSON header of a safetensors file, without its length prefix.
struct SafetensorsHeader {
  struct Entry {
    at::ScalarType dtype;
    std::vector<int64_t> shape;
    uint64_t begin;  // bytes, from the end of the header
    uint64_t end;
  };
  std::map<std::string, Entry> tensors;
  std::map<std::string, std::string> metadata;
};

// Longest header that is written or read, as in the public package.
constexpr uint64_t kLongestSafetensorsHeader = 100'000'000;

// PyTorch's own operators stop at this many dimensions.
constexpr std::size_t kMostDimensions = 64;

// "F32", "BF16" ... Throws std::invalid_argument for a dtype that muster does not store.
std::string safetensors_dtype(at::ScalarType dtype);
std::optional<at::ScalarType> dtype_of_safetensors(std::string_view name);

// Whether one tensor's bytes come before another's in a file: by dtype as in the public package, then by name.
bool comes_first(at::ScalarType dtype, const std::string& name, at::ScalarType other_dtype,
                 const std::string& other_name);

// Bytes of a tensor; nothing when that does not fit in int64. Zero dimensions count as one for that check, because
// strides are computed that way.
std::optional<uint64_t> bytes_of_shape(at::ScalarType dtype, const std::vector<int64_t>& shape);

// Checks everything: JSON and UTF-8, known keys and dtypes, no key twice, shapes that fit in int64, and byte ranges
// that match dtype and shape and together cover [0, data_size) without gap or overlap. Throws Error(kBadData) naming
// `file` and the tensor. Memory use is a small multiple of the header's size, whatever it says.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_size, const std::string& file);

// What stands before the tensors' bytes: 8 bytes with the header's length, and the header as JSON, padded with blanks
// so that both end on a multiple of 8. `order` has the tensors' names as their bytes lie in the file. Throws
// Error(kBadData) if a text is not UTF-8 or the header is too long.
std::string safetensors_head(const SafetensorsHeader& header, const std::vector<std::string>& order);

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

struct SafetensorsFile {
  std::map<std::string, at::Tensor> tensors;  // CPU, contiguous, each owning its memory
  std::map<std::string, std::string> metadata;
};

// In the order of their names (byte order of UTF-8).
std::vector<const NamedTensor*> by_name(const std::vector<NamedTensor>& tensors);

// Throws std::invalid_argument for an undefined or sparse tensor, a dtype that muster does not store, or the reserved
// name "__metadata__".
void require_storable(const NamedTensor& item);

// Passes the file's bytes to `sink` in order. The bytes depend on nothing but the arguments, not even on the order of
// `tensors`, and are those of the public safetensors package (which does not order metadata: equal up to one key):
// tensors by dtype, so that each is aligned to its element size, then by name. A tensor on another device or with
// strides is copied, one at a time. Dtypes: float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool. Throws
// as require_storable() and std::invalid_argument for a repeated name; Error(kBadData) for a name or metadata text that
// is not UTF-8.
void serialize_safetensors(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata,
                           const std::function<void(std::string_view)>& sink);

// serialize_safetensors to a file that appears whole or not at all (see AtomicFile). Also throws Error(kIo).
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata);

// An open file whose header has been read and checked. Trusts nothing in it: throws Error(kBadData) naming file and
// tensor for anything that is not a legal safetensors file of the dtypes above, before allocating more than the file's
// size; Error(kIo) if it cannot be read. Keeps the file open: one of the same name that appears later is not read.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::string& path);

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }
  // `count` bytes of a tensor's data from its byte `from` on.
  void read(const SafetensorsHeader::Entry& entry, uint64_t from, void* out, uint64_t count);
  // All bytes, header included.
  InputFile& file() { return file_; }

 private:
  std::string path_;
  InputFile file_;
  uint64_t data_begin_ = 0;
  SafetensorsHeader header_;
};

// Reads a whole file; throws as SafetensorsReader does.
SafetensorsFile read_safetensors(const std::string& path);

// Whether all bytes are 0 or 1. A C++ bool that holds another one is undefined behaviour, so such a file must not
// become a tensor.
bool holds_booleans(const void* bytes, uint64_t count);

}  // namespace muster::checkpoints
