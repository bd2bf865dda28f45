#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "launcher/study/results.h"
#include "tests/helpers/temporary_folder.h"

namespace muster::launcher {
namespace {

// A test split of 20,000 samples of 7 classes: some 4 MB.
TEST(Predictions, OfLargeTestSplitsArePooled) {
  const TemporaryFolder folder;
  constexpr int kRows = 20000, kClasses = 7;
  std::string header = "id,label,prediction";
  for (int c = 0; c < kClasses; ++c) header += fmt::format(",probability_emotion {}", c);
  std::mt19937 random(3);
  std::vector<std::string> files;
  int right = 0;
  for (int fold = 0; fold < 2; ++fold) {
    files.push_back((folder.path() / fmt::format("fold-{}.csv", fold)).string());
    std::ofstream file(files.back());
    file << header << '\n';
    for (int row = 0; row < kRows / (1 + fold); ++row) {
      const int label = row % kClasses, prediction = static_cast<int>(random() % kClasses);
      right += label == prediction;
      file << fmt::format("\"sample, {} of {}\",emotion {},emotion {}", row, fold, label, prediction);
      for (int c = 0; c < kClasses; ++c) file << fmt::format(",{:.17g}", c == prediction ? 0.94 : 0.01);
      file << '\n';
    }
  }
  const auto metrics = pooled_metrics(files);
  ASSERT_EQ(metrics.at(0).first, "WA");
  EXPECT_NEAR(metrics[0].second, right / (1.5 * kRows), 1e-12);
}

}  // namespace
}  // namespace muster::launcher
