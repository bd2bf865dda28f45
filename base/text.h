#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// Text for people and for other programs.
namespace muster {

std::string join(const std::vector<std::string>& items, std::string_view separator = ", ");
// The first `most` of them, then "and 299,990 more": for what may be long.
std::string join_first(const std::vector<std::string>& items, size_t most, std::string_view separator = ", ");
// Without blanks, tabs and line ends at either end.
std::string trimmed(std::string_view text);
// "1 rank", "3 ranks": for nouns that take an s.
std::string plural(int64_t count, std::string_view noun);

// `text` in single quotes, for messages: bytes that are not printable UTF-8 as \xNN, cut after 80 bytes.
std::string in_quotes(const std::string& text);
// Text that may hold bytes of files, for a terminal, which would act on some of them: control characters other than tab
// and line end, and what is no UTF-8, as \xNN.
std::string printable(std::string_view text);
// A message of any size: its first `most` lines, then how many more there are.
std::string first_lines(const std::string& text, size_t most);
// As a POSIX shell takes it for one word; plain words stay as they are.
std::string shell_quoted(const std::string& word);
// As a field of a CSV file: in double quotes where necessary. Spreadsheets run text that begins with = + - or @ as a
// formula; such text gets a single quote before it, except numbers and plain words after a sign (ids of videos).
std::string csv_field(const std::string& text);

// "1.5 GB", "64 KB", "12 bytes": powers of 1,000.
std::string size_text(double bytes);
// A length of time to read while waiting: "75 s", "12m05s", "1h07m", "3d04h".
std::string duration_text(double seconds);
// A measured time: "3.2 us", "15 ms", "2.5 s".
std::string seconds_text(double seconds);
// "2026-01-31T12:00:00Z"
std::string utc_now();

// The number that the whole text is, or nothing: no blanks, no plus sign, nothing out of range.
std::optional<int64_t> parse_integer(std::string_view text);
// In any notation of the C language, inf and nan included; never by the locale.
std::optional<double> parse_real(std::string_view text);
// Seconds of "3h55m", "90s", "1d12h", "45" (minutes, as in Slurm) or "4:00:00" (hours, minutes, seconds). Nothing if it
// is none of them.
std::optional<double> parse_duration(const std::string& text);

}  // namespace muster
