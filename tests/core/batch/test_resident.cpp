#include "core/batch/resident.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace muster::batch {
namespace {

TEST(KeepResident, LeavesHalfOfWhatIsFree) {
  EXPECT_FALSE(keep_resident(config::Training::NEVER, 1, 1000, 1));
  EXPECT_TRUE(keep_resident(config::Training::WHEN_IT_FITS, 500, 1000, 1));
  EXPECT_FALSE(keep_resident(config::Training::WHEN_IT_FITS, 501, 1000, 1));
  EXPECT_TRUE(keep_resident(config::Training::WHEN_IT_FITS, 125, 1000, 4));
  EXPECT_FALSE(keep_resident(config::Training::WHEN_IT_FITS, 126, 1000, 4));
  EXPECT_TRUE(keep_resident(config::Training::ALWAYS, 1000, 1000, 1));
}

TEST(KeepResident, SaysWhatIsMissing) {
  try {
    keep_resident(config::Training::ALWAYS, int64_t{30} * 1000000000, int64_t{80} * 1000000000, 4);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadConfig);
    for (const char* part : {"training.data_on_device", "120 GB", "4 ranks", "80 GB", "WHEN_IT_FITS"})
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << part << " in " << error.what();
  }
}

TEST(ResidentFrames, GathersRowsAsIndexingDoes) {
  at::manual_seed(1);
  // Several chunks of the first table: it is larger than what is read at once.
  const std::vector<at::Tensor> tables{at::randn({9000, 2500}), at::randn({10, 3}), at::randn({0, 4})};
  const auto read = [&](int64_t position, int64_t first, int64_t count) {
    return tables[position].narrow(0, first, count).to(at::kDouble);
  };
  const ResidentFrames resident({{9000, 2500, at::kDouble}, {10, 3, at::kDouble}, {0, 4, at::kDouble}}, {}, read);
  const auto expect = [&](int64_t position, const std::vector<int64_t>& first_rows,
                          const std::vector<int64_t>& lengths) {
    std::vector<int64_t> offsets{0};
    std::vector<at::Tensor> parts{tables[position].narrow(0, 0, 0)};
    for (size_t s = 0; s < lengths.size(); ++s) {
      offsets.push_back(offsets.back() + lengths[s]);
      parts.push_back(tables[position].narrow(0, first_rows[s], lengths[s]));
    }
    EXPECT_TRUE(resident.gather(position, first_rows, offsets).equal(at::cat(parts).to(at::kDouble)));
  };
  expect(0, {6800, 0, 8999, 6700, 6700}, {30, 1, 1, 25, 0});
  expect(1, {7, 2, 2, 0}, {3, 0, 5, 10});
  expect(1, {}, {});
  expect(2, {0, 0}, {0, 0});
}

}  // namespace
}  // namespace muster::batch
