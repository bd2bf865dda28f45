#pragma once

#include <cstdint>
#include <string_view>

namespace muster {

// The CRC32C (Castagnoli; RFC 3720, as in iSCSI, ext4 and TensorFlow's records) of `bytes` after bytes whose own was
// `before`:
//     crc32c("123456789") == crc32c("6789", crc32c("12345")) == 0xE3069283
uint32_t crc32c(std::string_view bytes, uint32_t before = 0);

}  // namespace muster
