#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/batch/global_batch.h"
#include "tests/core/batch/tensor_dataset.h"

namespace muster::batch {
namespace {

std::vector<int64_t> shuffled_samples(int64_t n) {
  std::vector<int64_t> samples(n);
  for (int64_t i = 0; i < n; ++i) samples[i] = (7 * i + 3) % n;
  return samples;
}

TEST(GlobalBatch, EveryRowHasOneOwner) {
  for (int64_t n = 0; n <= 19; ++n)
    for (int64_t microbatches = 0; microbatches <= 21; ++microbatches)
      for (int ranks = 1; ranks <= 9; ++ranks) {
        SCOPED_TRACE(std::to_string(n) + " samples, " + std::to_string(microbatches) + " microbatches, " +
                     std::to_string(ranks) + " ranks");
        const int64_t pieces = microbatches > 0 ? microbatches : ranks;
        int64_t next = 0;
        std::vector<int64_t> piece_sizes, pieces_per_rank;
        std::vector<int64_t> counts;
        for (int rank = 0; rank < ranks; ++rank) {
          const GlobalBatch global = divide(shuffled_samples(n), {microbatches, rank, ranks});
          if (rank == 0) counts = global.row_counts;
          ASSERT_EQ(global.row_counts, counts) << "ranks disagree";
          ASSERT_EQ(global.samples, shuffled_samples(n));
          ASSERT_EQ(global.own.begin, next);
          ASSERT_EQ(global.own.size(), counts[rank]);
          for (const auto& rows : global.own_microbatches) {
            ASSERT_EQ(rows.begin, next);
            ASSERT_GT(rows.size(), 0);
            next = rows.end;
            piece_sizes.push_back(rows.size());
          }
          ASSERT_EQ(global.own.end, next);
          pieces_per_rank.push_back(static_cast<int64_t>(global.own_microbatches.size()));
        }
        ASSERT_EQ(next, n);
        ASSERT_EQ(static_cast<int>(counts.size()), ranks);
        ASSERT_EQ(static_cast<int64_t>(piece_sizes.size()), std::min(pieces, n));
        const auto spread = [](const std::vector<int64_t>& v) {
          return *std::max_element(v.begin(), v.end()) - *std::min_element(v.begin(), v.end());
        };
        if (!piece_sizes.empty()) {
          ASSERT_LE(spread(piece_sizes), 1);
        }
        if (n >= pieces) {
          ASSERT_LE(spread(pieces_per_rank), 1);
        }
      }
}

TEST(GlobalBatch, MicrobatchesDoNotDependOnRanks) {
  const auto pieces = [](int ranks) {
    std::vector<std::pair<int64_t, int64_t>> all;
    for (int rank = 0; rank < ranks; ++rank) {
      const GlobalBatch global = divide(shuffled_samples(29), {8, rank, ranks});
      for (const auto& rows : global.own_microbatches) all.emplace_back(rows.begin, rows.end);
    }
    return all;
  };
  for (int ranks = 2; ranks <= 10; ++ranks) EXPECT_EQ(pieces(ranks), pieces(1));
}

TEST(GlobalBatch, ReadsItsRows) {
  at::manual_seed(1);
  const at::Tensor first = at::randn({9, 3}), second = at::randn({5, 2});
  const TensorDataset dataset({first, second}, {{2, 0, 3, 1, 3}, {1, 1, 0, 2, 1}});
  const BatchReader reader(dataset, {1, 0}, {}, at::kDouble);
  const Division division{2, 1, 2};
  const auto loaded = read_batch(reader, {4, 1, 3, 0}, division);
  ASSERT_EQ(loaded.microbatches.size(), 1u);
  const auto& batch = loaded.microbatches[0];
  EXPECT_EQ(batch.samples, (std::vector<int64_t>{3, 0}));
  EXPECT_EQ(batch.batch_index, (std::vector<int64_t>{2, 3}));
  ASSERT_EQ(batch.modalities.size(), 2u);
  EXPECT_EQ(batch.modalities[0].offsets, (std::vector<int64_t>{0, 2, 3}));
  EXPECT_TRUE(
      batch.modalities[0].values.equal(at::cat({second.slice(0, 2, 4), second.slice(0, 0, 1)}).to(at::kDouble)));
  EXPECT_EQ(batch.modalities[1].offsets, (std::vector<int64_t>{0, 1, 3}));
  EXPECT_TRUE(batch.modalities[1].values.equal(at::cat({first.slice(0, 5, 6), first.slice(0, 0, 2)}).to(at::kDouble)));
  EXPECT_TRUE(batch.labels.equal(at::tensor({1.5, 0.0}, at::kDouble)));

  const auto& global = loaded.global;
  EXPECT_EQ(global.size(), 4);
  EXPECT_TRUE(global.labels.equal(at::tensor({2.0, 0.5, 1.5, 0.0}, at::kDouble)));
  EXPECT_TRUE(global.presence.to(at::kLong).equal(at::tensor({1, 1, 1, 0, 1, 1, 1, 1}, at::kLong).view({4, 2})));
  EXPECT_FALSE(make_global_batch(reader, {4, 1, 3, 0}, division, false).labels.defined());
  EXPECT_FALSE(read_batch(reader, {4, 1, 3, 0}, division, 0, false).microbatches[0].labels.defined());
}

}  // namespace
}  // namespace muster::batch
