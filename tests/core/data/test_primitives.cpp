#include <gtest/gtest.h>

#include <cmath>

#include "core/data/half.h"

namespace muster::data {
namespace {

// Value of a binary16 from its definition, in double arithmetic.
double half_by_definition(uint16_t half) {
  const double sign = half & 0x8000 ? -1 : 1;
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(Half, EveryBitPattern) {
  for (uint32_t half = 0; half < 65536; ++half) {
    const double expected = half_by_definition(static_cast<uint16_t>(half));
    const float value = half_to_float(static_cast<uint16_t>(half));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << half;
    } else {
      ASSERT_EQ(expected, static_cast<double>(value)) << half;
      ASSERT_EQ(std::signbit(expected), std::signbit(value)) << half;
    }
  }
}

}  // namespace
}  // namespace muster::data
