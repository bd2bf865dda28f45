#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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

// Text from a file, in quotes, fit for a message: short, and without control characters that would act on a terminal.
std::string printable(const std::string& text);

// Checks everything: JSON and UTF-8, known keys and dtypes, no key twice, shapes that fit in int64, and byte ranges
// that match dtype and shape and together cover [0, data_size) without gap or overlap. Throws Error(kBadData) naming
// `file` and the tensor. Memory use is a small multiple of the header's size, whatever it says.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_size, const std::string& file);

// The header as JSON, padded with blanks so that it and the 8-byte length before it end on a multiple of 8. `order` has
// the tensors' names as their bytes lie in the file. Throws Error(kBadData) if a text is not UTF-8 or the header is too
// long.
std::string format_safetensors_header(const SafetensorsHeader& header, const std::vector<std::string>& order);

}  // namespace muster::checkpoints
