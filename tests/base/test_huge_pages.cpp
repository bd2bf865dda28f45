#include "base/huge_pages.h"

#include <gtest/gtest.h>

namespace muster {
namespace {

constexpr long kPage = 4096, kPagesOf64GiB = 16777216;

TEST(HeapToReserve, IsHalfOfTheMemoryWhereAddressSpaceIsFree) {
  EXPECT_EQ(heap_to_reserve({false, '0', kPagesOf64GiB, kPage}), size_t{32} << 30);
  EXPECT_EQ(heap_to_reserve({false, '1', kPagesOf64GiB + 1, kPage}), size_t{32} << 30);
  EXPECT_EQ(heap_to_reserve({false, '0', kPagesOf64GiB / 16, 16 * kPage}), size_t{32} << 30);
}

TEST(HeapToReserve, IsLittleWhereItIsCountedOrLimited) {
  EXPECT_EQ(heap_to_reserve({}), kLeastHeap);
  EXPECT_EQ(heap_to_reserve({true, '0', kPagesOf64GiB, kPage}), kLeastHeap);
  EXPECT_EQ(heap_to_reserve({false, '2', kPagesOf64GiB, kPage}), kLeastHeap);
}

TEST(HeapToReserve, IsLittleOnSmallMachinesAndWhereTheirSizeIsNotKnown) {
  EXPECT_EQ(heap_to_reserve({false, '0', 1000, kPage}), kLeastHeap);
  EXPECT_EQ(heap_to_reserve({false, '0', -1, kPage}), kLeastHeap);
  EXPECT_EQ(heap_to_reserve({false, '0', kPagesOf64GiB, 0}), kLeastHeap);
}

}  // namespace
}  // namespace muster
