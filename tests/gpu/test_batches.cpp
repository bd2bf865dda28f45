// Batches on a GPU, read from the file, read ahead, or gathered from its memory, against those on the CPU: bit for bit.
#include "core/batch/prefetch.h"
#include "core/batch/reader.h"
#include "tests/core/batch/tensor_dataset.h"
#include "tests/gpu/gpu.h"

namespace muster::batch {
namespace {

struct Fixture {
  explicit Fixture(int64_t samples = 40) {
    at::manual_seed(1);
    std::vector<std::vector<int64_t>> lengths(2, std::vector<int64_t>(samples));
    int64_t frames[2] = {0, 0};
    for (int64_t s = 0; s < samples; ++s) {
      lengths[0][s] = (7 * s) % 31, lengths[1][s] = (11 * s + 3) % 17;
      for (int m = 0; m < 2; ++m) frames[m] += lengths[m][s];
    }
    values = {at::randn({frames[0], 33}) * 5 + 100, at::randn({frames[1], 8})};
    for (const auto& table : values) {
      const at::Tensor wide = table.to(at::kDouble);
      moments.push_back({wide.mean(0), wide.std(0)});
    }
    dataset = std::make_unique<TensorDataset>(values, lengths);
  }
  std::vector<at::Tensor> values;
  std::vector<FeatureMoments> moments;
  std::unique_ptr<TensorDataset> dataset;
};

void expect_equal(const Batch& gpu, const Batch& cpu) {
  EXPECT_EQ(gpu.samples, cpu.samples);
  ASSERT_EQ(gpu.modalities.size(), cpu.modalities.size());
  for (size_t m = 0; m < cpu.modalities.size(); ++m) {
    EXPECT_EQ(gpu.modalities[m].offsets, cpu.modalities[m].offsets);
    ASSERT_TRUE(gpu.modalities[m].values.is_cuda());
    EXPECT_EQ(gpu.modalities[m].values.scalar_type(), cpu.modalities[m].values.scalar_type());
    EXPECT_TRUE(gpu.modalities[m].values.to(at::kCPU).equal(cpu.modalities[m].values));
  }
  ASSERT_TRUE(gpu.labels.is_cuda());
  EXPECT_TRUE(gpu.labels.to(at::kCPU).equal(cpu.labels));
}

const std::vector<std::vector<int64_t>> kAsked{{3, 1, 2}, {0}, {}, {39, 39, 0, 5}, {10, 11, 12, 13, 14, 15, 16, 17}};

class Batches : public gpu::Gpu {};

TEST_F(Batches, EqualThoseOnTheCpu) {
  const Fixture fixture;
  for (const auto dtype : {at::kFloat, at::kDouble})
    for (const bool standardize : {false, true})
      for (const auto residency : {config::Training::NEVER, config::Training::WHEN_IT_FITS, config::Training::ALWAYS}) {
        const auto moments = standardize ? fixture.moments : std::vector<FeatureMoments>();
        const BatchReader on_cpu(*fixture.dataset, {1, 0}, moments, dtype);
        BatchReader on_gpu(*fixture.dataset, {1, 0}, moments, dtype, device_);
        EXPECT_EQ(on_gpu.keep_on_device(residency), residency != config::Training::NEVER);
        for (const auto& samples : kAsked) {
          const std::vector<int64_t> rows(samples.size(), 7);
          expect_equal(on_gpu.read(samples, rows), on_cpu.read(samples, rows));
          EXPECT_TRUE(on_gpu.labels(samples).equal(on_cpu.labels(samples)));
          EXPECT_TRUE(on_gpu.presence(samples).equal(on_cpu.presence(samples)));
          EXPECT_TRUE(
              on_gpu.read_modality(0, samples).values.to(at::kCPU).equal(on_cpu.read_modality(0, samples).values));
        }
      }
}

// The memory of batches that were dropped is given out again while the upload stream runs ahead: a missing event or
// record_stream shows here as wrong numbers.
TEST_F(Batches, ReadAheadEqualThoseOnTheCpu) {
  const Fixture fixture(200);
  for (const bool resident : {false, true}) {
    const BatchReader on_cpu(*fixture.dataset, {0, 1}, fixture.moments, at::kFloat);
    BatchReader on_gpu(*fixture.dataset, {0, 1}, fixture.moments, at::kFloat, device_);
    ASSERT_EQ(on_gpu.keep_on_device(resident ? config::Training::ALWAYS : config::Training::NEVER), resident);
    Prefetcher prefetcher(on_gpu, 3);
    constexpr int64_t kRounds = 300;
    std::vector<at::Tensor> sums;
    for (int64_t i = 0; i < kRounds; ++i) prefetcher.request({i % 200, (3 * i) % 200, (7 * i) % 200}, {0, 1, 2});
    for (int64_t i = 0; i < kRounds; ++i) {
      const Batch batch = prefetcher.next();
      at::Tensor busy = batch.modalities[0].values;
      for (int k = 0; k < 20; ++k) busy = busy + 0;  // keeps the stream behind the upload
      sums.push_back(busy.to(at::kDouble).sum() + batch.modalities[1].values.to(at::kDouble).sum());
    }
    for (int64_t i = 0; i < kRounds; ++i) {
      const Batch batch = on_cpu.read({i % 200, (3 * i) % 200, (7 * i) % 200}, {0, 1, 2});
      const double expected = batch.modalities[0].values.to(at::kDouble).sum().item<double>() +
                              batch.modalities[1].values.to(at::kDouble).sum().item<double>();
      ASSERT_NEAR(sums[i].item<double>(), expected, 1e-9 * (1 + std::abs(expected))) << "batch " << i;
    }
  }
}

TEST_F(Batches, MoreThanFitsIsRefused) {
  EXPECT_GT(free_device_memory(device_), int64_t{1} << 28);
  EXPECT_FALSE(keep_resident(config::Training::WHEN_IT_FITS, int64_t{1} << 50, free_device_memory(device_), 1));
}

}  // namespace
}  // namespace muster::batch
