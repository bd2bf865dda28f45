#include "core/batch/prefetch.h"

#include <gtest/gtest.h>

#include <atomic>

#include "base/error.h"
#include "tests/core/batch/tensor_dataset.h"

namespace muster::batch {
namespace {

std::vector<std::vector<int64_t>> lengths() { return {{3, 0, 5, 1, 2, 4}, {1, 2, 0, 7, 1, 1}}; }

TensorDataset dataset() {
  at::manual_seed(1);
  return {{at::randn({15, 4}), at::randn({12, 3})}, lengths()};
}

void expect_equal(const Batch& actual, const Batch& expected) {
  EXPECT_EQ(actual.samples, expected.samples);
  EXPECT_EQ(actual.batch_index, expected.batch_index);
  ASSERT_EQ(actual.modalities.size(), expected.modalities.size());
  for (size_t m = 0; m < actual.modalities.size(); ++m) {
    EXPECT_EQ(actual.modalities[m].offsets, expected.modalities[m].offsets);
    EXPECT_TRUE(actual.modalities[m].values.equal(expected.modalities[m].values));
  }
  EXPECT_TRUE(actual.labels.equal(expected.labels));
}

TEST(Prefetcher, GivesWhatReadingGivesInOrder) {
  const auto data = dataset();
  const BatchReader reader(data, {0, 1}, {}, at::kDouble);
  for (const int64_t ahead : {1, 2, 5}) {
    Prefetcher prefetcher(reader, ahead);
    for (int round = 0; round < 50; ++round) {
      std::vector<std::vector<int64_t>> asked;
      for (int64_t i = 0; i < 1 + round % 7; ++i) asked.push_back({(round + i) % 6, (3 * round + 2 * i) % 6});
      for (const auto& samples : asked) prefetcher.request(samples, {round, round + 1});
      for (const auto& samples : asked) expect_equal(prefetcher.next(), reader.read(samples, {round, round + 1}));
    }
  }
}

TEST(Prefetcher, RefusesToGiveWhatWasNotAskedFor) {
  const auto data = dataset();
  const BatchReader reader(data, {0, 1}, {}, at::kFloat);
  Prefetcher prefetcher(reader);
  EXPECT_THROW(prefetcher.next(), Error);
  prefetcher.request({1}, {0});
  prefetcher.next();
  EXPECT_THROW(prefetcher.next(), Error);
}

TEST(Prefetcher, EndsWithBatchesNotTaken) {
  const auto data = dataset();
  const BatchReader reader(data, {0, 1}, {}, at::kFloat);
  for (int round = 0; round < 20; ++round) {
    Prefetcher prefetcher(reader, 1);
    for (int64_t i = 0; i < 6; ++i) prefetcher.request({i}, {i});
    if (round % 2 == 0) {
      EXPECT_EQ(prefetcher.next().samples, std::vector<int64_t>{0});
    }
  }
}

class BrokenDataset final : public data::Dataset {
 public:
  BrokenDataset() {
    index_.modalities.push_back({"m", 2, {0, 1, 2}});
    index_.ids = {"a", "b"};
    index_.labels = {0, 1};
  }
  void read_frames(int64_t, int64_t first, int64_t, float* out) const override {
    if (first == 1) throw Error(ExitCode::kIo, "sample b cannot be read");
    out[0] = out[1] = 1;
  }
  std::string content_hash() const override { return ""; }
  std::string source() const override { return "broken"; }
};

TEST(Prefetcher, ThrowsTheErrorOfItsBatchAndGoesOn) {
  const BrokenDataset data;
  const BatchReader reader(data, {0}, {}, at::kFloat);
  Prefetcher prefetcher(reader);
  for (const int64_t sample : {0, 1, 0}) prefetcher.request({sample}, {0});
  EXPECT_EQ(prefetcher.next().samples, std::vector<int64_t>{0});
  try {
    prefetcher.next();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "sample b cannot be read");
  }
  EXPECT_EQ(prefetcher.next().samples, std::vector<int64_t>{0});
}

// A dataset that says how many reads have begun.
class CountingDataset final : public data::Dataset {
 public:
  CountingDataset() {
    index_.modalities.push_back({"m", 1, {0, 1, 2, 3, 4, 5, 6, 7, 8}});
    for (int i = 0; i < 8; ++i) index_.ids.push_back(std::to_string(i)), index_.labels.push_back(i);
  }
  void read_frames(int64_t, int64_t, int64_t, float* out) const override {
    ++reads;
    *out = 0;
  }
  std::string content_hash() const override { return ""; }
  std::string source() const override { return "counting"; }
  mutable std::atomic<int> reads{0};
};

TEST(Prefetcher, ReadsAheadButNotFurtherThanTold) {
  const CountingDataset data;
  const BatchReader reader(data, {0}, {}, at::kFloat);
  Prefetcher prefetcher(reader, 3);
  for (int64_t i = 0; i < 8; ++i) prefetcher.request({i}, {i});
  while (data.reads < 3) std::this_thread::yield();  // reads although nobody has asked for a batch yet
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(data.reads, 3);
  prefetcher.next();
  while (data.reads < 4) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(data.reads, 4);
}

}  // namespace
}  // namespace muster::batch
