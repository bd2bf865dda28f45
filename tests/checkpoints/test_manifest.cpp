#include "checkpoints/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/checkpoints/states.h"

namespace muster::checkpoints {
namespace {

using ::testing::HasSubstr;

Manifest example() {
  Manifest manifest;
  manifest.info = {~uint64_t{0}, -1, 7, {"mae", -0.0, false}, "config", std::string("\0state", 6)};
  manifest.world_size = 2;
  manifest.files = {{shard_name(0, 2, 0), 1000, 0}, {shard_name(1, 2, 2), 24, 0xFFFFFFFF}};
  manifest.tensors = {{"", at::kByte, {}}, {"Gefühl", at::kBFloat16, {3, 0, 5}}, {"z", at::kLong, {127}}};
  return manifest;
}

TEST(Manifest, GivesBackWhatItHolds) {
  const Manifest manifest = example(), read = parse_manifest(serialize_manifest(manifest), "M");
  EXPECT_EQ(read.info.step, manifest.info.step);
  EXPECT_EQ(read.info.epoch, -1);
  EXPECT_EQ(read.info.seed, 7u);
  EXPECT_EQ(read.info.score.name, "mae");
  EXPECT_TRUE(read.info.score.value == 0 && std::signbit(read.info.score.value));
  EXPECT_FALSE(read.info.score.higher_is_better);
  EXPECT_EQ(read.info.config, "config");
  EXPECT_EQ(read.info.training_state, std::string("\0state", 6));
  ASSERT_EQ(read.files.size(), 2u);
  EXPECT_EQ(read.files[1].name, "rank-1-of-2.retry2.safetensors");
  EXPECT_EQ(read.files[1].size, 24u);
  EXPECT_EQ(read.files[1].crc32c, 0xFFFFFFFFu);
  ASSERT_EQ(read.tensors.size(), 3u);
  EXPECT_EQ(read.tensors[1].name, "Gefühl");
  EXPECT_EQ(read.tensors[1].dtype, at::kBFloat16);
  EXPECT_EQ(read.tensors[1].shape, (std::vector<int64_t>{3, 0, 5}));
}

TEST(Manifest, EveryFlippedBitEveryLengthAndEveryAddedByteIsNoticed) {
  const std::string good = serialize_manifest(example());
  for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bad = good;
    bad[bit / 8] ^= static_cast<char>(1 << bit % 8);
    EXPECT_THAT(error_of(ExitCode::kBadData, [&] { parse_manifest(bad, "M"); }), HasSubstr("M is damaged")) << bit;
  }
  for (std::size_t length = 0; length < good.size(); ++length)
    error_of(ExitCode::kBadData, [&] { parse_manifest(good.substr(0, length), "M"); });
  for (int byte = 0; byte < 256; ++byte)
    error_of(ExitCode::kBadData, [&] { parse_manifest(good + static_cast<char>(byte), "M"); });
}

TEST(Manifest, WhatCouldNotBeReadIsNotWritten) {
  Manifest manifest = example();
  manifest.files[0].name = "../elsewhere";
  error_of(ExitCode::kInternal, [&] { serialize_manifest(manifest); });
  manifest = example();
  manifest.info.config.assign(kLargestManifest, 'x');
  EXPECT_THAT(error_of(ExitCode::kInternal, [&] { serialize_manifest(manifest); }), HasSubstr("at most 64 MiB"));
}

}  // namespace
}  // namespace muster::checkpoints
