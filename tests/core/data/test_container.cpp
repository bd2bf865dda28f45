#include "core/data/container.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "core/data/inspect.h"
#include "core/data/scan.h"
#include "core/data/synthetic.h"
#include "core/data/writer.h"
#include "tests/helpers/memory_dataset.h"
#include "tests/helpers/temporary_folder.h"

// The container against files of our own writer; test_container.py does so against h5py's.
namespace muster::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

TEST(Container, WrittenAndReadBackIsTheSame) {
  TemporaryFolder folder;
  MemoryDataset original({"audio", "vision"}, {3, 0, 5, 1});
  original.index().ids[1] = "sch\xC3\xB6n";
  write_container(folder.file("d.h5"), original);
  const auto copy = open_container(folder.file("d.h5"));
  const DatasetIndex& expected = original.index();
  const DatasetIndex& index = copy->index();
  EXPECT_EQ(index.name, expected.name);
  EXPECT_EQ(index.task, expected.task);
  EXPECT_EQ(index.class_names, expected.class_names);
  EXPECT_EQ(index.ids, expected.ids);
  EXPECT_EQ(index.groups, expected.groups);
  EXPECT_EQ(index.splits, expected.splits);
  EXPECT_EQ(index.labels, expected.labels);
  ASSERT_EQ(index.modalities.size(), 2u);
  for (int64_t m = 0; m < 2; ++m) {
    EXPECT_EQ(index.modalities[m].name, expected.modalities[m].name);
    EXPECT_EQ(index.modalities[m].offsets, expected.modalities[m].offsets);
    EXPECT_TRUE(copy->storage()[m].direct);
    std::vector<float> values(original.values[m].size());
    copy->read_frames(m, 0, 9, values.data());
    EXPECT_EQ(values, original.values[m]);
    std::vector<float> two(4);
    copy->read_frames(m, 7, 2, two.data());
    EXPECT_EQ(two, std::vector<float>(original.values[m].end() - 4, original.values[m].end()));
  }
  EXPECT_EQ(index.find_modality("vision"), 1);
  EXPECT_EQ(index.find_modality("text"), -1);
  EXPECT_TRUE(verify(folder.file("d.h5")).empty());
}

TEST(Container, SyntheticWrittenEqualsGenerated) {
  TemporaryFolder folder;
  const auto original = make_synthetic(SyntheticKind::kRegression, 40, 1, 9);
  write_container(folder.file("d.h5"), *original);
  const auto copy = open_container(folder.file("d.h5"));
  EXPECT_EQ(copy->index().labels, original->index().labels);
  for (int64_t m = 0; m < 3; ++m) {
    const Modality& table = original->index().modalities[m];
    std::vector<float> a(static_cast<size_t>(table.offsets.back() * table.dim)), b(a.size());
    original->read_frames(m, 0, table.offsets.back(), a.data());
    copy->read_frames(m, 0, table.offsets.back(), b.data());
    EXPECT_EQ(a, b);
  }
}

TEST(Container, RawDataWrittenEqualsGenerated) {
  TemporaryFolder folder;
  const auto original = make_synthetic(SyntheticKind::kClassification, 5, 1, 9, {{}, 0, 1, true});
  write_container(folder.file("d.h5"), *original);
  const auto copy = open_container(folder.file("d.h5"));
  for (int64_t m = 0; m < 2; ++m) {
    const Modality &table = original->index().modalities[m], &read = copy->index().modalities[m];
    EXPECT_EQ(read.kind, m == 0 ? ModalityKind::kWaveform : ModalityKind::kTokens);
    EXPECT_EQ(read.sample_rate, m == 0 ? 16000 : 0);
    EXPECT_EQ(copy->storage()[m].type, m == 0 ? "float32" : "int32");
    EXPECT_TRUE(copy->storage()[m].direct);
    std::vector<float> a(static_cast<size_t>(table.offsets.back())), b(a.size());
    original->read_frames(m, 0, table.offsets.back(), a.data());
    copy->read_frames(m, 0, table.offsets.back(), b.data());
    EXPECT_EQ(a, b);
  }
  EXPECT_TRUE(verify(folder.file("d.h5")).empty());
}

TEST(Container, ReadsFromSeveralThreads) {
  TemporaryFolder folder;
  const MemoryDataset original({"audio"}, std::vector<int64_t>(200, 7));
  write_container(folder.file("d.h5"), original);
  const auto container = open_container(folder.file("d.h5"));
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<float> row(14);
      for (int64_t sample = t; sample < 200; sample += 4) {
        container->read_frames(0, sample * 7, 7, row.data());
        wrong[t] += !std::equal(row.begin(), row.end(), original.values[0].begin() + sample * 14);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(Container, ShrunkAfterOpeningIsAnError) {
  TemporaryFolder folder;
  const MemoryDataset original({"audio"}, {100000});
  write_container(folder.file("d.h5"), original);
  const auto container = open_container(folder.file("d.h5"));
  std::filesystem::resize_file(folder.file("d.h5"), 5000);
  std::vector<float> values(200000);
  try {
    container->read_frames(0, 0, 100000, values.data());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_THAT(error.what(), HasSubstr("became shorter"));
  }
}

TEST(Container, ErrorsSayWhatIsNotThere) {
  TemporaryFolder folder;
  const auto code_of = [](const std::string& path) {
    try {
      open_container(path);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(path));
      return error.code();
    }
    return ExitCode::kDone;
  };
  EXPECT_EQ(code_of(folder.file("missing.h5")), ExitCode::kIo);
  EXPECT_EQ(code_of(folder.path().string()), ExitCode::kBadData);
  std::ofstream(folder.file("empty.h5"));
  EXPECT_EQ(code_of(folder.file("empty.h5")), ExitCode::kBadData);
  std::ofstream(folder.file("text.h5")) << "id,label\n";
  EXPECT_EQ(code_of(folder.file("text.h5")), ExitCode::kBadData);
  ASSERT_EQ(mkfifo(folder.file("fifo").c_str(), 0600), 0);
  EXPECT_EQ(code_of(folder.file("fifo")), ExitCode::kBadData);
}

TEST(Container, TwentyProblemsAreListedAndTheRestCounted) {
  TemporaryFolder folder;
  MemoryDataset original({"audio"}, std::vector<int64_t>(50, 1));
  for (auto& id : original.index().ids) id = "same";
  write_container(folder.file("d.h5"), original);
  try {
    open_container(folder.file("d.h5"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(": 49 problems:\n"));
    EXPECT_THAT(error.what(), HasSubstr("and 29 more"));
    EXPECT_THAT(error.what(), HasSubstr("'same' occurs twice, in rows 0 and 20"));
    EXPECT_THAT(error.what(), testing::Not(HasSubstr("rows 0 and 21")));
  }
}

TEST(Container, LabelsMayBeAbsentUnlessRequired) {
  TemporaryFolder folder;
  MemoryDataset original({"audio"}, {1, 1});
  original.index().labels.clear();
  write_container(folder.file("d.h5"), original);
  EXPECT_FALSE(open_container(folder.file("d.h5"))->index().has_labels());
  OpenOptions options;
  options.labels_required = true;
  EXPECT_THROW(open_container(folder.file("d.h5"), options), Error);
}

// A limit on file size stands in for a full disk: what goes past it fails to be written. Lifted at the end of the
// scope.
class FileSizeLimit {
 public:
  FileSizeLimit() {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, SIG_DFL);
  }
  void set(rlim_t bytes) const {
    struct rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }

 private:
  struct rlimit before_ {};
};

// The disk fills up between the structure and the frames.
class DiskFillsUp : public MemoryDataset {
 public:
  explicit DiskFillsUp(const FileSizeLimit& limit) : MemoryDataset({"audio"}, {300000}), limit_(limit) {}
  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    limit_.set(4096);
    MemoryDataset::read_frames(modality, first, count, out);
  }

 private:
  const FileSizeLimit& limit_;
};

TEST(Writer, LeavesNothingBehindWhenItFails) {
  TemporaryFolder folder;
  const MemoryDataset data({"audio"}, {300000});
  std::ofstream(folder.file("d.h5")) << "old";
  const auto code_of = [&](const Dataset& dataset) {
    try {
      write_container(folder.file("d.h5"), dataset);
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::kDone;
  };
  for (const rlim_t bytes : {65536, 0}) {
    FileSizeLimit limit;
    limit.set(bytes);
    EXPECT_EQ(code_of(data), ExitCode::kIo) << bytes;
  }
  {
    FileSizeLimit limit;
    EXPECT_EQ(code_of(DiskFillsUp(limit)), ExitCode::kIo);
  }
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    EXPECT_EQ(entry.path().filename(), "d.h5");
    ++files;
  }
  EXPECT_EQ(files, 1);
  EXPECT_EQ(std::filesystem::file_size(folder.file("d.h5")), 3u);  // still the old one
  EXPECT_EQ(code_of(data), ExitCode::kDone);
  EXPECT_TRUE(verify(folder.file("d.h5")).empty());
  EXPECT_THROW(write_container(folder.file("no/such/folder.h5"), data), Error);
}

TEST(Scan, NamesTheFirstAndCountsAll) {
  MemoryDataset data({"audio", "vision"}, {3, 0, 5, 1});
  data.values[0][2 * 4 + 1] = NAN;    // audio frame 4: sample 2 (sample 1 is empty), its frame 1, column 1
  data.values[1][2 * 8] = -INFINITY;  // vision frame 8: sample 3, frame 0, column 0
  const ScanReport report = scan_values(data, {0, 1}, 0, 4);
  EXPECT_EQ(report.values, 36);
  EXPECT_EQ(report.non_finite, 2);
  ASSERT_EQ(report.first.size(), 2u);
  EXPECT_EQ(report.first[0].id, "s2");
  EXPECT_EQ(report.first[0].frame, 1);
  EXPECT_EQ(report.first[0].column, 1);
  EXPECT_EQ(report.first[1].id, "s3");
  EXPECT_THAT(describe(report), HasSubstr("sample 's3', vision, frame 0, column 0: -infinity"));
  EXPECT_EQ(describe(scan_values(data, {1}, 0, 3)), "");
}

TEST(Scan, SharesOfRanksMergeToTheWhole) {
  MemoryDataset data({"audio", "vision"}, std::vector<int64_t>(600, 2));
  for (size_t i = 0; i < data.values[0].size(); i += 97) data.values[0][i] = NAN;
  for (size_t i = 5; i < data.values[1].size(); i += 101) data.values[1][i] = INFINITY;
  const ScanReport whole = scan_values(data, {0, 1}, 0, 600);
  ScanReport merged = scan_values(data, {0, 1}, 400, 600);
  merged.merge(scan_values(data, {0, 1}, 0, 130));
  merged.merge(scan_values(data, {0, 1}, 130, 400));
  EXPECT_EQ(whole.first.size(), 10u);
  EXPECT_EQ(describe(whole), describe(merged));
  EXPECT_EQ(whole.values, merged.values);
}

TEST(Scan, SaysWhichWaveformsAreLouderThanTheyShouldBe) {
  MemoryDataset data({"audio", "vision"}, {3, 0, 5, 1, 2});  // rows of two values each
  data.index().modalities[0].kind = ModalityKind::kWaveform;
  for (auto& values : data.values) std::fill(values.begin(), values.end(), 1.0f);
  EXPECT_THAT(warnings(scan_values(data, {0, 1}, 0, 5)), IsEmpty());
  data.values[0][6] = -3.25f;     // sample 2 (sample 1 is empty) ...
  data.values[0][12] = 2;         // ... twice
  data.values[0][19] = 3.25f;     // sample 4: as large, but later
  data.values[0][16] = INFINITY;  // sample 3: an error, no warning
  data.values[0][0] = NAN;
  data.values[1][0] = 99;
  const std::string expected = "2 of 4 waveforms of audio have values outside [-1, 1] (largest 3.25, sample 's2')";
  EXPECT_THAT(warnings(scan_values(data, {0, 1}, 0, 5)), ElementsAre(expected));
  ScanReport merged = scan_values(data, {0, 1}, 4, 5);
  merged.merge(scan_values(data, {0, 1}, 0, 4));
  EXPECT_THAT(warnings(merged), ElementsAre(expected));
}

TEST(Scan, TellsSegmentIdsFromIds) {
  MemoryDataset data({"text"}, {3, 2});
  data.index().modalities[0].kind = ModalityKind::kTokens;
  data.values[0] = {5, 0, 6, 1, 7, 2, 8, 0, 9, 1};
  const std::vector<IdLimits> limits{{100, 2}};
  const std::string bad = describe(scan_values(data, {0}, 0, 2, {}, limits));
  EXPECT_THAT(
      bad, HasSubstr("1 value is not among the encoder's segment ids (column 1), which end at 1 (type_vocab_size 2)."));
  EXPECT_THAT(bad, HasSubstr("sample 's0', text, frame 2, column 1: 2"));
  EXPECT_THAT(bad, Not(HasSubstr("vocabulary, which")));
  data.values[0][2] = 100;
  EXPECT_THAT(
      describe(scan_values(data, {0}, 0, 2, {}, limits)),
      HasSubstr("1 value is no ids of tokens of the encoder's vocabulary, which ends at 99.\n1 value is not among"));
}

TEST(Inspect, CountsByHand) {
  MemoryDataset data({"audio"}, {3, 0, 5, 1});
  data.values[0][0] = NAN;
  const auto facts = inspect_json(data);
  EXPECT_EQ(facts["modalities"][0]["missing"], 1);
  EXPECT_EQ(facts["modalities"][0]["length"]["median"], 3.0);
  EXPECT_EQ(facts["modalities"][0]["length"]["mean"], 3.0);
  EXPECT_EQ(facts["splits"]["train"]["classes"], (std::vector<int>{2, 0}));
  EXPECT_EQ(facts["groups"]["g0"], 2);
  EXPECT_EQ(facts["non_finite"], 1);
  EXPECT_THAT(inspect(data), HasSubstr("non-finite  1 of 18 values"));
}

}  // namespace
}  // namespace muster::data
