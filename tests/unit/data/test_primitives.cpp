#include <gtest/gtest.h>

#include <cmath>

#include "core/data/half.h"
#include "base/utf8.h"

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

// FIPS 180-4's examples.
TEST(Utf8, WellFormedAndIllFormed) {
  for (const char* good :
       {"", "plain", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xED\x9F\xBF", "\xF4\x8F\xBF\xBF"})
    EXPECT_TRUE(is_valid_utf8(good)) << good;
  // Lone continuation, overlong forms, surrogate, past U+10FFFF, cut short.
  for (const char* bad : {"\x80", "\xC0\xAF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                          "\xE2\x82", "a\xFF"})
    EXPECT_FALSE(is_valid_utf8(bad));
  EXPECT_EQ(in_quotes("a\n\xFF\xC3\xA9"), "'a\\x0a\\xff\xC3\xA9'");
}

}  // namespace
}  // namespace muster::data
