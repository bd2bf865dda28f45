#include "base/utf8.h"

namespace muster {

size_t utf8_length(std::string_view text, size_t position) {
  const auto byte = [&](size_t offset) -> unsigned {
    return position + offset < text.size() ? static_cast<unsigned char>(text[position + offset]) : 0u;
  };
  const auto continues = [&](size_t offset) { return (byte(offset) & 0xC0u) == 0x80u; };
  const unsigned lead = byte(0);
  const unsigned second = byte(1);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return continues(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    if (!continues(1) || !continues(2)) return 0;
    if (lead == 0xE0 && second < 0xA0) return 0;
    if (lead == 0xED && second > 0x9F) return 0;
    return 3;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    if (!continues(1) || !continues(2) || !continues(3)) return 0;
    if (lead == 0xF0 && second < 0x90) return 0;
    if (lead == 0xF4 && second > 0x8F) return 0;
    return 4;
  }
  return 0;
}

bool is_valid_utf8(const std::string& text) {
  for (size_t position = 0; position < text.size();) {
    const size_t length = utf8_length(text, position);
    if (length == 0) return false;
    position += length;
  }
  return true;
}

size_t first_non_text(const std::string& text) {
  for (size_t position = 0; position < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[position]);
    const bool control = (c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F;
    const size_t length = utf8_length(text, position);
    if (control || length == 0) return position;
    position += length;
  }
  return std::string::npos;
}

}  // namespace muster
