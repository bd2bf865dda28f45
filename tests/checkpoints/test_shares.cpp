#include "checkpoints/shares.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/checkpoints/states.h"

namespace muster::checkpoints {
namespace {

using ::testing::HasSubstr;

uint64_t size_of_rows(const std::vector<TensorInfo>& table, const std::vector<Piece>& share) {
  uint64_t bytes = 0;
  for (const Piece& piece : share) {
    const TensorInfo& tensor = table[piece.tensor];
    const uint64_t rows = tensor.shape.empty() ? 1 : tensor.shape[0];
    if (rows > 0) bytes += *bytes_of_shape(tensor.dtype, tensor.shape) / rows * piece.rows;
  }
  return bytes;
}

TEST(Shares, CoverEverythingOnceInEvenRuns) {
  std::mt19937 random(3);
  for (int repeat = 0; repeat < 300; ++repeat) {
    std::vector<TensorInfo> table;
    uint64_t largest_row = 0, total = 0;
    for (int i = random() % 12; i > 0; --i) {
      TensorInfo tensor{"t" + std::to_string(100 - i), random() % 2 ? at::kFloat : at::kLong, {}};
      for (int d = random() % 3; d > 0; --d) tensor.shape.push_back(random() % 9);
      const uint64_t size = *bytes_of_shape(tensor.dtype, tensor.shape);
      total += size;
      if (size > 0) largest_row = std::max(largest_row, size / (tensor.shape.empty() ? 1 : tensor.shape[0]));
      table.push_back(tensor);
    }
    const int ranks = 1 + random() % 6;
    const auto shares = share_out(table, ranks);
    ASSERT_EQ(shares.size(), static_cast<std::size_t>(ranks));
    std::vector<int64_t> next(table.size(), 0);
    for (const auto& share : shares) {
      EXPECT_LE(size_of_rows(table, share), total / ranks + 2 * largest_row);
      for (const Piece& piece : share) {
        EXPECT_EQ(piece.first_row, next[piece.tensor]);
        next[piece.tensor] += piece.rows;
      }
    }
    for (std::size_t i = 0; i < table.size(); ++i) EXPECT_EQ(next[i], table[i].shape.empty() ? 1 : table[i].shape[0]);

    // What the shards say about themselves covers the tensors as well.
    Coverage coverage(table);
    for (const auto& share : shares) {
      const ShardLayout layout = lay_out_shard(table, share);
      coverage.add("shard", parse_safetensors_header(layout.head.substr(8), layout.data_size, "shard"));
    }
    coverage.require_complete("checkpoint");
  }
}

TEST(Shares, AMissingOrRepeatedShardIsNoticed) {
  const std::vector<TensorInfo> table = {{"a", at::kFloat, {10, 3}}, {"b", at::kFloat, {}}, {"c", at::kByte, {90}}};
  const auto shares = share_out(table, 3);
  for (int missing = 0; missing < 3; ++missing) {
    for (const bool repeated : {false, true}) {
      const std::string message = error_of(ExitCode::kBadData, [&] {
        Coverage coverage(table);
        for (int rank = 0; rank < 3; ++rank) {
          for (int times = rank != missing ? 1 : repeated ? 2 : 0; times > 0; --times) {
            const ShardLayout layout = lay_out_shard(table, shares[rank]);
            coverage.add("shard " + std::to_string(rank),
                         parse_safetensors_header(layout.head.substr(8), layout.data_size, "shard"));
          }
        }
        coverage.require_complete("checkpoint");
      });
      EXPECT_THAT(message,
                  HasSubstr(repeated ? "and again in shard " + std::to_string(missing) : std::string("tensor '")))
          << missing;
    }
  }
}

TEST(Shares, AGapIsNoticedAlsoWhereAnOverlapMakesUpForIt) {
  const std::vector<TensorInfo> table = {{"a", at::kFloat, {6}}};
  EXPECT_THAT(error_of(ExitCode::kBadData,
                       [&] {
                         Coverage coverage(table);
                         for (const int64_t first : {0, 3, 4}) {
                           coverage.add("shard", parse_safetensors_header(
                                                     lay_out_shard(table, {{0, first, 2}}).head.substr(8), 8, "shard"));
                         }
                         coverage.require_complete("checkpoint");
                       }),
              HasSubstr("lacks rows from 2 on"));
}

TEST(Shares, TellPyTorchWhereRowsBelongOnlyWhereATensorIsSplit) {
  const std::vector<TensorInfo> table = {{"a", at::kFloat, {2}}, {"b", at::kFloat, {2, 3}}};
  EXPECT_EQ(lay_out_shard(table, {{0, 0, 2}, {1, 0, 2}}).head.find("DCP"), std::string::npos);
  const auto header =
      parse_safetensors_header(lay_out_shard(table, {{0, 0, 2}, {1, 1, 1}}).head.substr(8), 20, "shard");
  EXPECT_EQ(header.metadata.at("DCP_SHARDING_INFO"), R"({"a":{"saved_offsets":[0]},"b":{"saved_offsets":[1,0]}})");
  EXPECT_EQ(header.tensors.at("b").shape, (std::vector<int64_t>{1, 3}));
}

}  // namespace
}  // namespace muster::checkpoints
