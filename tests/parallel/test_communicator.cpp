// The communicator under mpirun -n 1..4 (n = 1 takes the path without MPI). Every rank runs every test.
// `test_communicator abort RANK CODE`: that rank aborts the job while the others wait for it; see test_abort.py.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "distributed/communicator.h"

namespace muster::distributed {
namespace {

Communicator* ranks = nullptr;

// What rank `rank` holds at place i: sums of these over ranks are exact in every dtype.
at::Tensor part(int64_t numel, at::ScalarType dtype, int rank) {
  return (at::arange(numel, at::kLong).remainder(1009) * (rank + 1) - 500 * rank).to(dtype);
}

std::string bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.data_ptr()), static_cast<size_t>(tensor.numel() * tensor.element_size())};
}

TEST(Communicator, KnowsItsJob) {
  const char* promised = std::getenv("OMPI_COMM_WORLD_SIZE");
  ASSERT_NE(promised, nullptr) << "start this with mpirun";
  EXPECT_EQ(ranks->size(), std::atoi(promised));
  EXPECT_EQ(ranks->rank(), std::atoi(std::getenv("OMPI_COMM_WORLD_RANK")));
  EXPECT_EQ(ranks->local_size(), ranks->size());
}

TEST(Communicator, AllReduceSums) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kLong})
    for (const int64_t numel : {0, 1, 7, 4097, 1 << 20}) {
      at::Tensor expected = at::zeros({numel}, dtype);
      for (int rank = 0; rank < ranks->size(); ++rank) expected += part(numel, dtype, rank);
      const at::Tensor tensor = part(numel, dtype, ranks->rank());
      ranks->all_reduce_sum(tensor);
      EXPECT_TRUE(tensor.equal(expected)) << c10::toString(dtype) << " " << numel;
    }
}

TEST(Communicator, AllReduceGivesEveryRankTheSameBits) {
  at::manual_seed(ranks->rank());
  for (const int64_t numel : {1, 1000, 1 << 18}) {
    const at::Tensor tensor = at::randn({numel}) * 1e3;
    ranks->all_reduce_sum(tensor);
    for (const auto& other : ranks->all_gather_bytes(bytes_of(tensor))) EXPECT_TRUE(other == bytes_of(tensor)) << numel;
  }
}

TEST(Communicator, AllReduceOfShapesAndScalars) {
  const at::Tensor matrix = at::ones({3, 5}, at::kDouble), scalar = at::scalar_tensor(2.0, at::kDouble);
  ranks->all_reduce_sum(matrix);
  ranks->all_reduce_sum(scalar);
  EXPECT_TRUE(matrix.equal(at::full({3, 5}, static_cast<double>(ranks->size()), at::kDouble)));
  EXPECT_EQ(scalar.item<double>(), 2.0 * ranks->size());
}

// Rows per rank: some ranks with none.
std::vector<std::vector<int64_t>> count_patterns() {
  std::vector<std::vector<int64_t>> patterns;
  const int n = ranks->size();
  std::vector<int64_t> even(n, 3), rising(n), only_last(n, 0), gaps(n), large(n);
  for (int r = 0; r < n; ++r) rising[r] = r, gaps[r] = r % 2 == 0 ? 0 : 5, large[r] = 3000 + 17 * r;
  only_last[n - 1] = 4;
  patterns = {even, rising, only_last, gaps, large, std::vector<int64_t>(n, 0)};
  return patterns;
}

TEST(Communicator, AllGatherRows) {
  for (const auto& counts : count_patterns())
    for (const auto dtype : {at::kFloat, at::kDouble, at::kLong})
      for (const auto& trailing : std::vector<std::vector<int64_t>>{{}, {1}, {13}, {2, 3}, {0}}) {
        const auto rows_of = [&](int rank) {
          auto shape = trailing;
          shape.insert(shape.begin(), counts[rank]);
          int64_t numel = 1;
          for (const int64_t size : shape) numel *= size;
          return part(numel, dtype, rank).view(shape);
        };
        std::vector<at::Tensor> all;
        for (int rank = 0; rank < ranks->size(); ++rank) all.push_back(rows_of(rank));
        const at::Tensor own = rows_of(ranks->rank()), before = own.clone();
        const at::Tensor gathered = ranks->all_gather_rows(own, counts);
        EXPECT_EQ(gathered.scalar_type(), dtype);
        EXPECT_TRUE(gathered.equal(at::cat(all, 0)));
        at::Tensor(gathered).fill_(-1);
        EXPECT_TRUE(own.equal(before)) << "the result must be a new tensor";
      }
}

TEST(Communicator, AllGatherBytes) {
  const auto check = [](const char* what, const std::function<std::string(int)>& text_of) {
    const auto gathered = ranks->all_gather_bytes(text_of(ranks->rank()));
    ASSERT_EQ(static_cast<int>(gathered.size()), ranks->size());
    for (int rank = 0; rank < ranks->size(); ++rank) EXPECT_TRUE(gathered[rank] == text_of(rank)) << what << ", rank " << rank;
  };
  check("empty", [](int) { return std::string(); });
  check("uneven", [](int rank) { return std::string(7 * rank, static_cast<char>('a' + rank)); });
  check("only rank 0", [](int rank) { return rank == 0 ? std::string("x") : std::string(); });
  check("embedded zeros", [](int rank) { return std::string("a\0b\0", 4) + std::string(rank, '\0') + '\xff'; });
  check("1 MB", [](int rank) {
    std::string text((1 << 20) + rank, ' ');
    for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 + rank);
    return text;
  });
}

TEST(Communicator, RefusesWhatItCannotSend) {
  if (ranks->size() == 1) GTEST_SKIP() << "a job of one sends nothing";
  EXPECT_THROW(ranks->all_reduce_sum(at::zeros({4}, at::kBFloat16)), Error);
  EXPECT_THROW(ranks->all_reduce_sum(at::zeros({4, 4}).t().slice(0, 0, 2)), Error);
  EXPECT_THROW(ranks->all_gather_rows(at::zeros({3}), std::vector<int64_t>(ranks->size(), 2)), Error);
  EXPECT_THROW(ranks->all_gather_rows(at::zeros({3}), {3}), Error);
}

// What `together` does when `work` of each rank does; the same on every rank, which is checked.
std::string outcome(const std::function<void()>& work) {
  std::string text = "no error";
  try {
    together(*ranks, work);
  } catch (const SharedError& error) {
    text = std::to_string(static_cast<int>(error.code())) + ": " + error.what();
  }
  for (const auto& other : ranks->all_gather_bytes(text)) EXPECT_EQ(other, text);
  return text;
}

TEST(Together, Succeeds) {
  int runs = 0;
  EXPECT_EQ(outcome([&] { ++runs; }), "no error");
  EXPECT_EQ(runs, 1);
}

TEST(Together, AllFailAlike) {
  EXPECT_EQ(outcome([] { throw Error(ExitCode::kBadConfig, "line 3: no such key"); }), "78: line 3: no such key");
}

TEST(Together, OneFails) {
  for (int failing = 0; failing < ranks->size(); ++failing) {
    const std::string text = outcome([&] {
      if (ranks->rank() == failing) throw Error(ExitCode::kIo, "disk full");
    });
    const std::string who = "rank " + std::to_string(failing) + " of " + std::to_string(ranks->size()) + ": ";
    EXPECT_EQ(text, "74: " + (ranks->size() == 1 ? "" : who) + "disk full");
  }
}

TEST(Together, SomeFailDifferently) {
  if (ranks->size() < 3) GTEST_SKIP() << "needs three ranks";
  const std::string text = outcome([] {
    if (ranks->rank() == 1) throw std::runtime_error("a defect");
    if (ranks->rank() == 2) throw Error(ExitCode::kBadData, "bad\nfile");
  });
  const std::string of = " of " + std::to_string(ranks->size()) + ": ";
  EXPECT_EQ(text, "70: rank 1" + of + "a defect\nrank 2" + of + "bad\nfile");
}

TEST(Together, RanksGoOnTogetherAfterAnError) {
  outcome([] {
    if (ranks->rank() == 0) throw Error(ExitCode::kIo, "x");
  });
  const at::Tensor one = at::ones({1});
  ranks->all_reduce_sum(one);
  EXPECT_EQ(one.item<float>(), static_cast<float>(ranks->size()));
}

int abort_while_others_wait(int rank, int code) {
  if (ranks->rank() == rank) ranks->abort(static_cast<ExitCode>(code));
  ranks->all_reduce_sum(at::zeros({1}));
  ::sleep(300);
  return 0;
}

}  // namespace
}  // namespace muster::distributed

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const auto communicator = muster::distributed::connect();
  muster::distributed::ranks = communicator.get();
  if (argc == 4 && std::strcmp(argv[1], "abort") == 0)
    return muster::distributed::abort_while_others_wait(std::atoi(argv[2]), std::atoi(argv[3]));
  return RUN_ALL_TESTS();
}
