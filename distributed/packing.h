#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

// Values as bytes, for messages between processes of one program.
namespace muster::distributed {

template <typename T>
std::string bytes_of(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// Takes a value from the front of `bytes`; false when they are too short.
template <typename T>
bool take_value(std::string& bytes, T& value) {
  if (bytes.size() < sizeof value) return false;
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes.erase(0, sizeof value);
  return true;
}

inline std::string pack(const std::vector<int>& ranks) {
  std::string bytes = bytes_of(static_cast<int32_t>(ranks.size()));
  for (const int rank : ranks) bytes += bytes_of(static_cast<int32_t>(rank));
  return bytes;
}

// Takes ranks from the front of `bytes`; numbers that are not below `size` are skipped.
inline std::vector<int> unpack(std::string& bytes, int size) {
  int32_t count = 0, rank = 0;
  std::vector<int> ranks;
  take_value(bytes, count);
  for (int32_t i = 0; i < count && take_value(bytes, rank); ++i)
    if (rank >= 0 && rank < size) ranks.push_back(rank);
  return ranks;
}

}  // namespace muster::distributed
