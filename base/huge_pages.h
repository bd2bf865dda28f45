#pragma once

#include <cstddef>

namespace muster {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Asks the system to map the whole huge pages in [begin, begin + bytes) as such where they have not been touched yet:
// large tables are then filled and looked through faster. A hint: where the system does not follow it, nothing is lost.
void prefer_huge_pages(void* begin, std::size_t bytes);

// What the system says of address space, which costs no memory unless it counts or limits that too.
struct AddressSpace {
  bool is_limited = true;          // for this process (ulimit -v, -d), or not known
  char overcommit = '2';           // /proc/sys/vm/overcommit_memory; '2': all that is asked for counts as used
  long pages = 0, page_bytes = 0;  // of physical memory; not positive: not known
};

// Bytes that the heap may reserve at once: half of the memory, or no more than any command needs where address space
// is counted or limited. Safe before libraries are initialised.
constexpr std::size_t kLeastHeap = std::size_t{64} << 20;
std::size_t heap_to_reserve(const AddressSpace& space);

}  // namespace muster
