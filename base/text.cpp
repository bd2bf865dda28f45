#include "base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <regex>

#include "base/utf8.h"

namespace muster {
namespace {

std::string with_unit(double value, const char* unit) {
  const bool whole = value >= 10 || value == std::floor(value);
  return fmt::format("{:.{}f} {}", value, whole ? 0 : 1, unit);
}

std::string with_thousands(size_t number) {
  std::string digits = fmt::format("{}", number);
  for (size_t place = digits.size(); place > 3; place -= 3) digits.insert(place - 3, ",");
  return digits;
}

// What is no printable UTF-8, and none of `kept`, as \xNN; cut after `most` bytes.
std::string escaped(std::string_view text, std::string_view kept, size_t most) {
  std::string result;
  for (size_t position = 0; position < text.size();) {
    if (position >= most) return result + "...";
    const size_t length = utf8_length(text, position);
    const unsigned char first = static_cast<unsigned char>(text[position]);
    // The second range is U+0080 ... U+009F, which terminals act on too.
    const std::string_view two = text.substr(position, 2);
    const bool control = first < 0x20 || first == 0x7F || (two >= "\xC2\x80" && two <= "\xC2\x9F");
    if (length == 0 || (control && kept.find(text[position]) == kept.npos)) {
      for (const size_t end = position + std::max<size_t>(length, 1); position < end; ++position)
        result += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[position]));
    } else {
      result += text.substr(position, length);
      position += length;
    }
  }
  return result;
}

template <typename Number>
std::optional<Number> parse_whole(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

}  // namespace

std::string join(const std::vector<std::string>& items, std::string_view separator) {
  return fmt::format("{}", fmt::join(items, separator));
}

std::string trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == text.npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1));
}

std::string plural(int64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

std::string join_first(const std::vector<std::string>& items, size_t most, std::string_view separator) {
  if (items.size() <= most) return join(items, separator);
  return fmt::format("{}{}and {} more",
                     fmt::join(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(most), separator), separator,
                     with_thousands(items.size() - most));
}

std::string printable(std::string_view text) { return escaped(text, "\t\n", text.size()); }

std::string first_lines(const std::string& text, size_t most) {
  size_t end = 0;
  for (size_t line = 0; line < most; ++line) {
    const size_t next = text.find('\n', end);
    if (next == text.npos || next + 1 == text.size()) return text;
    end = next + 1;
  }
  const auto more =
      static_cast<size_t>(std::count(text.begin() + static_cast<std::ptrdiff_t>(end), text.end(), '\n')) + 1;
  return fmt::format("{}... and {} more lines", text.substr(0, end), with_thousands(more));
}

std::string in_quotes(const std::string& text) { return fmt::format("'{}'", escaped(text, "", 80)); }

std::string shell_quoted(const std::string& word) {
  if (!word.empty() &&
      word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%") == word.npos)
    return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string csv_field(const std::string& given) {
  // Ids such as -3g5yACwYnA (a video's) stay as they are: without operators nothing is run.
  const bool is_word =
      given.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+.[]") == given.npos;
  const bool runs = !given.empty() && (given[0] == '=' || given[0] == '@' || given[0] == '\'' ||
                                       ((given[0] == '+' || given[0] == '-') && !is_word));
  const std::string text = (runs ? "'" : "") + given;
  if (text.find_first_of(",\"\r\n") == text.npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string size_text(double bytes) {
  if (bytes < 1e3) return with_unit(bytes, "bytes");
  if (bytes < 1e6) return with_unit(bytes / 1e3, "KB");
  if (bytes < 1e9) return with_unit(bytes / 1e6, "MB");
  if (bytes < 1e12) return with_unit(bytes / 1e9, "GB");
  return with_unit(bytes / 1e12, "TB");
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::lround(seconds));
  if (whole < 120) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  return fmt::format("{}d{:02}h", whole / 86400, whole / 3600 % 24);
}

std::string seconds_text(double seconds) {
  if (seconds < 1e-3) return with_unit(seconds * 1e6, "us");
  if (seconds < 1) return with_unit(seconds * 1e3, "ms");
  return with_unit(seconds, "s");
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  struct tm fields;
  char text[32] = "";
  if (::gmtime_r(&now, &fields)) std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &fields);
  return text;
}

std::optional<int64_t> parse_integer(std::string_view text) { return parse_whole<int64_t>(text); }

std::optional<double> parse_real(std::string_view text) { return parse_whole<double>(text); }

std::optional<double> parse_duration(const std::string& text) {
  static const std::regex units(R"((?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?)"),
      minutes(R"(\d{1,9})"), clock(R"((?:(\d{1,6})-)?(\d{1,6}):(\d{1,2})(?::(\d{1,2}))?)");
  std::smatch match;
  const auto number = [&](int group) { return match[group].matched ? std::atof(match[group].str().c_str()) : 0.0; };
  double seconds = 0;
  if (std::regex_match(text, match, minutes)) {
    seconds = 60 * number(0);
  } else if (std::regex_match(text, match, clock)) {
    // Slurm: "hours:minutes:seconds", "minutes:seconds", "days-hours:minutes[:seconds]".
    const bool hours_first = match[1].matched || match[4].matched;
    seconds =
        86400 * number(1) + (hours_first ? 3600 * number(2) + 60 * number(3) + number(4) : 60 * number(2) + number(3));
  } else if (!text.empty() && std::regex_match(text, match, units)) {
    seconds = 86400 * number(1) + 3600 * number(2) + 60 * number(3) + number(4);
  } else {
    return std::nullopt;
  }
  if (seconds <= 0) return std::nullopt;
  return seconds;
}

}  // namespace muster
