#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "base/error.h"
#include "base/text.h"
#include "core/run/results.h"
#include "tests/helpers/temporary_folder.h"

namespace muster::run {
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
  const auto scores = scores_of_predictions(files);
  ASSERT_EQ(scores.metrics.at(0).first, "WA");
  EXPECT_NEAR(scores.metrics[0].second, right / (1.5 * kRows), 1e-12);
  EXPECT_EQ(scores.samples, 3 * kRows / 2);
  EXPECT_EQ(scores.class_names.at(6), "emotion 6");

  // A constant for each file in place of its predictions.
  const auto trivial = scores_of_predictions(files, {kRows, kRows / 2}, {"emotion 0", "emotion 1"});
  int trivially_right = 0;
  for (int fold = 0; fold < 2; ++fold)
    for (int row = 0; row < kRows / (1 + fold); ++row) trivially_right += row % kClasses == fold;
  EXPECT_NEAR(trivial.metrics.at(0).second, trivially_right / (1.5 * kRows), 1e-12);
}

// csv_field() puts a quote before what a spreadsheet would run, and before a quote; the column's name,
// "probability_=1", does not need it.
TEST(Predictions, ClassesWhoseNamesLookLikeFormulasAreToldApart) {
  const TemporaryFolder folder;
  const std::string file = (folder.path() / "predictions.csv").string();
  std::ofstream(file) << "id,label,prediction,probability_=1,probability_'=1\na," << csv_field("=1") << ","
                      << csv_field("'=1") << ",0.4,0.6\nb," << csv_field("=1") << "," << csv_field("=1")
                      << ",0.7,0.3\n";
  const auto scores = scores_of_predictions({file});
  EXPECT_EQ(scores.metrics.at(0).second, 0.5);
  EXPECT_EQ(scores.confusion, (metrics::Confusion{{1, 1}, {0, 0}}));
}

TEST(Predictions, ThatAreNotWholeAreRefused) {
  const TemporaryFolder folder;
  const std::string file = (folder.path() / "predictions.csv").string();
  const std::string whole = "id,label,prediction\na,1,0.5\nb,2,1.5\n";
  const auto read = [&](const std::string& text) {
    std::ofstream(file, std::ios::trunc) << text;
    return scores_of_predictions({file}, {2});
  };
  EXPECT_EQ(read(whole).samples, 2);
  EXPECT_EQ(to_json(read("id,label,prediction\r\na,1,0.5\r\nb,2,1.5\r\n").metrics), to_json(read(whole).metrics));
  const std::pair<const char*, const char*> torn[] = {
      {"id,label,prediction\na,1,0.5\nb,2,1.5", "line 3 is not whole"},
      {"id,label,prediction\na,1,0.5\nb,2", "line 3 is not whole"},
      {"id,label,prediction\na,1,0.5\n\"b,2,1.5\n", "line 3 is not whole"},
      {"id,label,prediction\na,1,0.5\n", "has 1 sample, but"},
      {"id,label,prediction\n", "has 0 samples, but"},
      {"id,label,prediction\na,1,0.5\nb,2,nan\n", "line 3: label and"},
      {"id,label,prediction\na,1e,0.5\nb,2,1\n", "line 2: label and"},
      {"", "no predictions"}};
  for (const auto& [text, said] : torn)
    EXPECT_THAT([&] { read(text); }, testing::ThrowsMessage<Error>(testing::HasSubstr(said))) << text;
}

}  // namespace
}  // namespace muster::run
