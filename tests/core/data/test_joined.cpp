#include "core/data/joined.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/helpers/memory_dataset.h"

namespace muster::data {
namespace {

std::shared_ptr<MemoryDataset> dataset(const std::vector<std::string>& modalities, const std::vector<int64_t>& lengths,
                                       float begin) {
  auto made = std::make_shared<MemoryDataset>(modalities, lengths);
  for (auto& values : made->values)
    for (size_t i = 0; i < values.size(); ++i) values[i] = begin + static_cast<float>(i);
  return made;
}

std::vector<float> frames_of(const Dataset& data, const std::string& modality, int64_t sample) {
  const int64_t position = data.index().find_modality(modality);
  const Modality& info = data.index().modalities[position];
  std::vector<float> out(static_cast<size_t>(info.length(sample) * info.dim));
  data.read_frames(position, info.offsets[sample], info.length(sample), out.data());
  return out;
}

TEST(JoinedDataset, TakesTheOtherDatasetsModalities) {
  const auto base = dataset({"audio", "text", "vision"}, {3, 0, 2}, 0), features = dataset({"text"}, {1, 0, 2}, 100);
  base->index().modalities[1].kind = ModalityKind::kTokens;
  base->index().modalities[0].kind = ModalityKind::kWaveform;
  base->index().modalities[0].sample_rate = 16000;
  const JoinedDataset joined(base, features);
  EXPECT_EQ(joined.index().ids, base->index().ids);
  EXPECT_EQ(joined.index().labels, base->index().labels);
  EXPECT_EQ(joined.index().modalities[1].kind, ModalityKind::kFeatures);
  EXPECT_EQ(joined.index().modalities[0].sample_rate, 16000);
  EXPECT_EQ(joined.index().modalities[1].offsets, (std::vector<int64_t>{0, 1, 1, 3}));
  EXPECT_EQ(frames_of(joined, "text", 0), (std::vector<float>{100, 101}));
  EXPECT_EQ(frames_of(joined, "text", 2), (std::vector<float>{102, 103, 104, 105}));
  EXPECT_EQ(frames_of(joined, "vision", 2), (std::vector<float>{6, 7, 8, 9}));
  EXPECT_EQ(joined.source(), base->source());
  EXPECT_EQ(joined.content_hash().size(), 64u);
}

TEST(JoinedDataset, RefusesWhatBelongsToOtherSamples) {
  const auto base = dataset({"audio"}, {3, 1, 2}, 0);
  EXPECT_THROW(JoinedDataset(base, dataset({"audio"}, {3, 1}, 0)), Error);
  EXPECT_THROW(JoinedDataset(base, dataset({"text"}, {3, 1, 2}, 0)), Error);
  const auto others = dataset({"audio"}, {3, 1, 2}, 0);
  others->index().ids[1] = "another";
  EXPECT_THROW(JoinedDataset(base, others), Error);
}

}  // namespace
}  // namespace muster::data
