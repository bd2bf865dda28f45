#pragma once

#include <cstdint>
#include <cstring>

namespace muster::data {

// IEEE 754 binary16 to binary32, exact for every bit pattern (subnormals, infinities and NaNs included).
inline float half_to_float(uint16_t half) {
  const bool negative = (half & 0x8000u) != 0;
  const uint32_t exponent = (half >> 10) & 0x1Fu, mantissa = half & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return negative ? -magnitude : magnitude;
  }
  const uint32_t bits = uint32_t{negative} << 31 | (exponent == 0x1F ? 0xFF : exponent + 112) << 23 | mantissa << 13;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace muster::data
