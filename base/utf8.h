#pragma once

#include <string>

namespace muster {

// Whether the bytes are well-formed UTF-8 (Unicode 15, table 3-7: no overlong forms, no surrogates, nothing past
// U+10FFFF).
bool is_valid_utf8(const std::string& text);

// `text` in single quotes, for messages: bytes that are not printable UTF-8 as \xNN, cut after 80 bytes.
std::string in_quotes(const std::string& text);

}  // namespace muster
