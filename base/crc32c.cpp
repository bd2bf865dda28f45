#include "base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace muster {

uint32_t crc32c(std::string_view bytes, uint32_t before) {
  // isa-l takes and gives the register itself: without the inversions at start and end, and lengths as int.
  uint32_t state = ~before;
  while (!bytes.empty()) {
    const std::size_t piece = std::min<std::size_t>(bytes.size(), 1 << 30);
    state =
        crc32_iscsi(reinterpret_cast<unsigned char*>(const_cast<char*>(bytes.data())), static_cast<int>(piece), state);
    bytes.remove_prefix(piece);
  }
  return ~state;
}

}  // namespace muster
