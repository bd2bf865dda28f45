// One result for every number of ranks and every way to deal out the leaves, bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "distributed/threads.h"
#include "distributed/tree_sum.h"
#include "tests/parallel/contract.h"

namespace muster::distributed {
namespace {

std::vector<int64_t> random_boundaries(std::mt19937& random, int64_t leaves, int ranks) {
  std::vector<int64_t> boundaries{0, leaves};
  for (int rank = 1; rank < ranks; ++rank) boundaries.push_back(random() % (leaves + 1));
  std::sort(boundaries.begin(), boundaries.end());
  return boundaries;
}

TEST(TreeSum, EveryNumberOfRanksAndBoundary) {
  int cases = 0, order_matters = 0;
  for (int ranks = 1; ranks <= 8; ++ranks)
    run_as_threads(ranks, [&](Communicator& communicator) {
      std::mt19937 random(7 * ranks);  // the same on all ranks
      for (int64_t leaves = 1; leaves <= 16; ++leaves)
        for (int round = 0; round < 4; ++round) {
          const auto boundaries = random_boundaries(random, leaves, ranks);
          const uint32_t absent = round % 2 ? random() : 0;
          const int64_t length = std::vector<int64_t>{0, 1, 5, 501}[(leaves + round) % 4];
          const auto dtype = round < 2 ? at::kFloat : at::kDouble;
          const auto all = contract::leaves_for_sums(leaves, length, dtype, absent);
          const at::Tensor expected = contract::direct_tree(all, length, dtype), result = at::full({length}, -1, dtype);
          TreeSum sum(leaves, boundaries, communicator.rank());
          for (int64_t leaf = boundaries[communicator.rank()]; leaf < boundaries[communicator.rank() + 1]; ++leaf)
            if (all[leaf].defined()) sum.add(leaf, all[leaf]);
          sum.reduce(communicator, result);
          EXPECT_TRUE(contract::same_bits(result, expected))
              << ranks << " ranks, " << leaves << " leaves, round " << round;
          if (communicator.rank() > 0) continue;
          ++cases;
          order_matters += !contract::same_bits(contract::sum_in_order(all, length, dtype), expected);
        }
    });
  EXPECT_EQ(cases, 8 * 16 * 4);
  EXPECT_GT(order_matters, cases / 8) << "these numbers would not show a wrong order";
}

TEST(TreeSum, KeepsSignsOfZeroAndAbsence) {
  // -0 is -0 when nothing is added to it; an absent leaf is not a leaf of zeros.
  const auto solo = make_single_process_communicator();
  const at::Tensor result = at::ones({1});
  TreeSum sum(3, {0, 3}, 0);
  sum.add(1, at::full({1}, -0.0f));
  sum.reduce(*solo, result);
  EXPECT_TRUE(std::signbit(result.item<float>()));
  sum.reduce(*solo, result);  // all absent
  EXPECT_FALSE(std::signbit(result.item<float>()));
  EXPECT_EQ(result.item<float>(), 0);
}

TEST(TreeSum, HoldsFewBuffersAndKeepsThem) {
  const auto solo = make_single_process_communicator();
  for (const int64_t leaves : {1, 2, 8, 13, 64, 100}) {
    TreeSum sum(leaves, {0, leaves}, 0);
    int64_t after_first = 0;
    for (int step = 0; step < 3; ++step) {
      for (int64_t leaf = 0; leaf < leaves; ++leaf) sum.add(leaf, at::ones({10}));
      const at::Tensor result = at::zeros({10});
      sum.reduce(*solo, result);
      EXPECT_TRUE(result.equal(at::full({10}, static_cast<float>(leaves))));
      if (step == 0) after_first = sum.buffers();
    }
    EXPECT_EQ(sum.buffers(), after_first) << leaves;
    EXPECT_LE(sum.buffers(), std::ceil(std::log2(leaves)) + 1) << leaves;
  }
}

TEST(TreeSum, TakesLeavesOfAnotherLengthAfterASum) {
  const auto solo = make_single_process_communicator();
  TreeSum sum(4, {0, 4}, 0);
  for (const int64_t length : {10, 3}) {
    const at::Tensor result = at::zeros({length}, at::kDouble);
    for (int64_t leaf = 0; leaf < 4; ++leaf) sum.add(leaf, at::ones({length}, at::kDouble));
    sum.reduce(*solo, result);
    EXPECT_TRUE(result.equal(at::full({length}, 4.0, at::kDouble)));
  }
}

TEST(TreeSum, SendsAsMuchAsAnAllReduce) {
  run_as_threads(4, [](Communicator& ranks) {
    TreeSum sum(8, {0, 2, 4, 6, 8}, ranks.rank());
    for (const int64_t leaf : {0, 1}) sum.add(2 * ranks.rank() + leaf, at::ones({1000}));
    sum.reduce(ranks, at::zeros({1000}));
    EXPECT_EQ(ranks.bytes_sent(), 2 * 4000 * 3 / 4);
  });
}

TEST(TreeSum, Refuses) {
  EXPECT_THROW(TreeSum(0, {0, 0}, 0), Error);
  EXPECT_THROW(TreeSum(4, {0, 3}, 0), Error);
  EXPECT_THROW(TreeSum(4, {1, 4}, 0), Error);
  EXPECT_THROW(TreeSum(4, {0, 3, 2, 4}, 0), Error);
  EXPECT_THROW(TreeSum(4, {0, 2, 4}, 2), Error);
  TreeSum sum(4, {0, 2, 4}, 1);
  EXPECT_THROW(sum.add(1, at::ones({3})), Error) << "another rank's";
  EXPECT_THROW(sum.add(2, at::ones({3, 1})), Error);
  EXPECT_THROW(sum.add(2, at::ones({3}, at::kLong)), Error);
  EXPECT_THROW(sum.add(2, at::ones({6}).slice(0, 0, 6, 2)), Error);
  sum.add(2, at::ones({3}));
  EXPECT_THROW(sum.add(2, at::ones({3})), Error) << "twice";
  EXPECT_THROW(sum.add(3, at::ones({4})), Error) << "another length";
  EXPECT_THROW(sum.add(3, at::ones({3}, at::kDouble)), Error) << "another dtype";
  EXPECT_THROW(sum.reduce(*make_single_process_communicator(), at::zeros({3})), Error) << "another number of ranks";
}

}  // namespace
}  // namespace muster::distributed
