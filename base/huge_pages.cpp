#include "base/huge_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

namespace muster {

void prefer_huge_pages(void* begin, std::size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (end > first) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

std::size_t heap_to_reserve(const AddressSpace& space) {
  if (space.is_limited || space.overcommit == '2' || space.pages <= 0 || space.page_bytes <= 0) return kLeastHeap;
  return std::max(static_cast<std::size_t>(space.pages) / 2 * static_cast<std::size_t>(space.page_bytes), kLeastHeap);
}

}  // namespace muster
