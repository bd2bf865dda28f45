#pragma once

#include <cstddef>
#include <string>
#include <string_view>

// UTF-8 as Unicode 15, table 3-7 defines it: no overlong forms, no surrogates, nothing past U+10FFFF.
namespace muster {

// The length of the sequence that starts at `position`; 0 when there is no well-formed one.
size_t utf8_length(std::string_view text, size_t position);

bool is_valid_utf8(const std::string& text);

// The position of the first byte that is not part of well-formed UTF-8 or is a control character other than tab,
// newline and carriage return; npos if there is none.
size_t first_non_text(const std::string& text);

}  // namespace muster
