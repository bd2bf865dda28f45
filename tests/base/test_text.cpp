#include "base/text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <regex>

#include "base/utf8.h"

namespace muster {
namespace {

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

TEST(Utf8, FirstByteThatIsNotText) {
  EXPECT_EQ(first_non_text("a\tb\r\n\xC3\xA9"), std::string::npos);
  EXPECT_EQ(first_non_text("ab\x01"), 2u);
  EXPECT_EQ(first_non_text(std::string("\xC3\xA9\0", 3)), 2u);
  EXPECT_EQ(first_non_text("a\xE9z"), 1u);
}

TEST(Text, Quoting) {
  EXPECT_EQ(in_quotes("\xC2\x9B[2J\xC2\xA0"), "'\\xc2\\x9b[2J\xC2\xA0'");  // a control character of terminals; a blank
  EXPECT_EQ(in_quotes(std::string(100, 'a')), "'" + std::string(80, 'a') + "...'");
  EXPECT_EQ(shell_quoted("a-b/c=1"), "a-b/c=1");
  EXPECT_EQ(shell_quoted(""), "''");
  EXPECT_EQ(shell_quoted("it's $HOME"), "'it'\\''s $HOME'");
  EXPECT_EQ(csv_field("plain text"), "plain text");
  EXPECT_EQ(csv_field("a,\"b\""), "\"a,\"\"b\"\"\"");
  EXPECT_EQ(csv_field("=1"), "'=1");
  EXPECT_EQ(csv_field("'=1"), "''=1");
}

TEST(Text, SizesAndTimes) {
  EXPECT_EQ(size_text(12), "12 bytes");
  EXPECT_EQ(size_text(64e3), "64 KB");
  EXPECT_EQ(size_text(1.5e9), "1.5 GB");
  EXPECT_EQ(size_text(2e15), "2000 TB");
  EXPECT_EQ(duration_text(0), "0 s");
  EXPECT_EQ(duration_text(75.4), "75 s");
  EXPECT_EQ(duration_text(119.6), "2m00s");
  EXPECT_EQ(duration_text(725), "12m05s");
  EXPECT_EQ(duration_text(4020), "1h07m");
  EXPECT_EQ(duration_text(86400 * 3 + 4 * 3600), "3d04h");
  EXPECT_EQ(seconds_text(3.2e-6), "3.2 us");
  EXPECT_EQ(seconds_text(0.015), "15 ms");
  EXPECT_EQ(seconds_text(2.5), "2.5 s");
  EXPECT_TRUE(std::regex_match(utc_now(), std::regex("20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")));
}

TEST(Text, Numbers) {
  EXPECT_EQ(parse_integer("-12"), -12);
  for (const char* bad : {"", " 1", "1 ", "+1", "1.0", "0x1", "9223372036854775808", "a"})
    EXPECT_FALSE(parse_integer(bad)) << bad;
  EXPECT_EQ(parse_real("-1.5e3"), -1500.0);
  EXPECT_TRUE(std::isinf(parse_real("inf").value()));
  for (const char* bad : {"", " 1", "1,5", "1.5x", "1e999"}) EXPECT_FALSE(parse_real(bad)) << bad;
}

TEST(Text, Lists) {
  EXPECT_EQ(join({"a", "b", "c"}), "a, b, c");
  EXPECT_EQ(join({}, "-"), "");
  EXPECT_EQ(trimmed(" \t a b\r\n"), "a b");
  EXPECT_EQ(trimmed(" \n"), "");
  EXPECT_EQ(plural(1, "rank"), "1 rank");
  EXPECT_EQ(plural(0, "rank"), "0 ranks");
}

}  // namespace
}  // namespace muster
