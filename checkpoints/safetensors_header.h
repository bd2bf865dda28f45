#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
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

// "F32", "BF16" ... Throws std::invalid_argument for a dtype that muster does not store.
std::string safetensors_dtype(at::ScalarType dtype);

// Checks everything: JSON and UTF-8, known keys and dtypes, no key twice, shapes that fit in int64, and byte ranges that
// match dtype and shape and together cover [0, data_size) without gap or overlap. Throws Error(kBadData) naming `file`
// and the tensor. Memory use is a small multiple of the header's size, whatever it says.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_size, const std::string& file);

// The header as JSON, padded with blanks so that it and the 8-byte length before it end on a multiple of 8. `order` has
// the tensors' names as their bytes lie in the file. Throws Error(kBadData) if a text is not UTF-8 or the header is too
// long.
std::string format_safetensors_header(const SafetensorsHeader& header, const std::vector<std::string>& order);

}  // namespace muster::checkpoints
