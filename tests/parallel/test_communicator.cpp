// The communicator's contract under mpirun -n 1..4 (n = 1 takes the path without MPI). Every rank runs every check.
// `test_communicator pieces BYTES`: the same, with MPI given at most BYTES at once.
// `test_communicator abort RANK CODE`: that rank aborts the job while the others wait for it; see test_abort.py.
// `test_communicator send all_gather_rows|all_to_all_rows|nothing`: one collective; see test_bytes_sent.py.
// `test_communicator absent RANK`: that rank does not come to the second collective; see test_absence.py.
#include <gtest/gtest.h>
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <numeric>

#include "tests/parallel/contract.h"

namespace muster::distributed {
namespace {

Communicator* ranks = nullptr;

// MPI's own collectives, called directly.
class RawMpi final : public contract::Peer {
 public:
  int64_t large() const override { return int64_t{ranks->size() == 2 ? 64 : 1} << 20; }

  at::Tensor sum(const contract::OfRank& put_in) override {
    const at::Tensor tensor = put_in(ranks->rank());
    const auto type = tensor.scalar_type() == at::kFloat    ? MPI_FLOAT
                      : tensor.scalar_type() == at::kDouble ? MPI_DOUBLE
                                                            : MPI_INT64_T;
    MPI_Allreduce(MPI_IN_PLACE, tensor.data_ptr(), static_cast<int>(tensor.numel()), type, MPI_SUM, MPI_COMM_WORLD);
    return tensor;
  }

  at::Tensor gather(const contract::OfRank& rows) override {
    const at::Tensor own = rows(ranks->rank());
    const int own_bytes = static_cast<int>(own.nbytes());
    std::vector<int> counts(ranks->size()), starts;
    MPI_Allgather(&own_bytes, 1, MPI_INT, counts.data(), 1, MPI_INT, MPI_COMM_WORLD);
    const at::Tensor all = empty(own, counts, starts, rows);
    MPI_Allgatherv(own.data_ptr(), own_bytes, MPI_BYTE, all.data_ptr(), counts.data(), starts.data(), MPI_BYTE,
                   MPI_COMM_WORLD);
    return all;
  }

  at::Tensor exchange(const contract::OfRank& rows, const contract::Counts& counts) override {
    const at::Tensor own = rows(ranks->rank());
    auto shape = own.sizes().vec();
    shape[0] = 1;
    const int row_bytes = static_cast<int>(c10::multiply_integers(shape) * own.element_size());
    std::vector<int> sends, receives, send_starts, receive_starts;
    shape[0] = 0;
    for (int peer = 0; peer < ranks->size(); ++peer) {
      send_starts.push_back(std::accumulate(sends.begin(), sends.end(), 0));
      receive_starts.push_back(std::accumulate(receives.begin(), receives.end(), 0));
      sends.push_back(static_cast<int>(counts[ranks->rank()][peer]) * row_bytes);
      receives.push_back(static_cast<int>(counts[peer][ranks->rank()]) * row_bytes);
      shape[0] += counts[peer][ranks->rank()];
    }
    const at::Tensor received = at::empty(shape, own.options());
    MPI_Alltoallv(own.data_ptr(), sends.data(), send_starts.data(), MPI_BYTE, received.data_ptr(), receives.data(),
                  receive_starts.data(), MPI_BYTE, MPI_COMM_WORLD);
    return received;
  }

  at::Tensor broadcast(const contract::OfRank& put_in, int root) override {
    const at::Tensor tensor = put_in(ranks->rank());
    MPI_Bcast(tensor.data_ptr(), static_cast<int>(tensor.nbytes()), MPI_BYTE, root, MPI_COMM_WORLD);
    return tensor;
  }

 private:
  at::Tensor empty(const at::Tensor& own, const std::vector<int>& counts, std::vector<int>& starts,
                   const contract::OfRank& rows) {
    auto shape = own.sizes().vec();
    shape[0] = 0;
    for (int peer = 0, start = 0; peer < ranks->size(); start += counts[peer++]) {
      starts.push_back(start);
      shape[0] += rows(peer).size(0);
    }
    return at::empty(shape, own.options());
  }
};

TEST(Job, KnowsItself) {
  const char* promised = std::getenv("OMPI_COMM_WORLD_SIZE");
  ASSERT_NE(promised, nullptr) << "start this with mpirun";
  EXPECT_EQ(ranks->size(), std::atoi(promised));
  EXPECT_EQ(ranks->rank(), std::atoi(std::getenv("OMPI_COMM_WORLD_RANK")));
  EXPECT_EQ(ranks->local_size(), std::atoi(std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE")));
  EXPECT_EQ(ranks->local_rank(), std::atoi(std::getenv("OMPI_COMM_WORLD_LOCAL_RANK")));
}

class Contract : public ::testing::TestWithParam<contract::Check> {};

TEST_P(Contract, Holds) {
  if (ranks->size() == 1) {
    contract::PlainPeer plain(0, 1);
    return GetParam().run(*ranks, plain);
  }
  RawMpi raw;
  GetParam().run(*ranks, raw);
}

INSTANTIATE_TEST_SUITE_P(Mpi, Contract, ::testing::ValuesIn(contract::all_checks()),
                         [](const auto& info) { return info.param.name; });

int abort_while_others_wait(int rank, int code) {
  if (ranks->rank() == rank) ranks->abort(static_cast<ExitCode>(code));
  ranks->all_reduce_sum(at::zeros({1}));
  ::sleep(300);
  return 0;
}

int send(const std::string& collective) {
  std::vector<int64_t> counts, receives;
  for (int peer = 0; peer < ranks->size(); ++peer) {
    counts.push_back(1000 * (ranks->rank() + 1) + peer);
    receives.push_back(1000 * (peer + 1) + ranks->rank());
  }
  const int64_t given = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  if (collective == "all_to_all_rows") ranks->all_to_all_rows(at::zeros({given, 7}), counts, receives);
  std::iota(counts.begin(), counts.end(), 500);
  if (collective == "all_gather_rows") ranks->all_gather_rows(at::zeros({counts[ranks->rank()], 7}), counts);
  std::printf("rank %d sent %ld\n", ranks->rank(), static_cast<long>(ranks->bytes_sent()));
  return 0;
}

int wait_for_an_absent_rank(int rank) {
  ranks->all_reduce_sum(at::zeros({3}));
  if (ranks->rank() == rank) ::sleep(300);
  ranks->all_reduce_sum(at::zeros({7}));
  return 0;
}

}  // namespace
}  // namespace muster::distributed

int main(int argc, char** argv) {
  using namespace muster::distributed;
  ::testing::InitGoogleTest(&argc, argv);
  const auto mode = [&](const char* name) { return argc > 2 && std::strcmp(argv[1], name) == 0; };
  const auto communicator = mode("pieces") ? make_mpi_communicator(std::atoll(argv[2])) : connect();
  ranks = communicator.get();
  if (mode("abort")) return abort_while_others_wait(std::atoi(argv[2]), std::atoi(argv[3]));
  if (mode("send")) return send(argv[2]);
  if (mode("absent")) return wait_for_an_absent_rank(std::atoi(argv[2]));
  return RUN_ALL_TESTS();
}
