#pragma once

#include <cstddef>

namespace muster {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Asks the system to map the whole huge pages in [begin, begin + bytes) as such where they have not been touched yet:
// large tables are then filled and looked through faster. A hint: where the system does not follow it, nothing is lost.
void prefer_huge_pages(void* begin, std::size_t bytes);

}  // namespace muster
