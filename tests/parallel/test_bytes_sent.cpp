// bytes_sent() against Open MPI's own counters (its monitoring component): mpirun --mca pml_monitoring_enable 2.
#include <gtest/gtest.h>
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <numeric>

#include "distributed/collective_call.h"
#include "distributed/mpi.h"

namespace muster::distributed {
namespace {

Communicator* ranks = nullptr;

// One of Open MPI's counters of bytes to each rank.
class Counter {
 public:
  explicit Counter(const char* name) {
    int provided = 0, index = 0;
    MPI_T_init_thread(MPI_THREAD_SINGLE, &provided);
    if (MPI_T_pvar_get_index(name, MPI_T_PVAR_CLASS_SIZE, &index) != MPI_SUCCESS) return;
    MPI_Comm world = MPI_COMM_WORLD;
    found_ = MPI_T_pvar_session_create(&session_) == MPI_SUCCESS &&
             MPI_T_pvar_handle_alloc(session_, index, &world, &handle_, &count_) == MPI_SUCCESS &&
             MPI_T_pvar_start(session_, handle_) == MPI_SUCCESS;
  }
  ~Counter() {
    if (found_) MPI_T_pvar_session_free(&session_);
    MPI_T_finalize();
  }
  bool found() const { return found_; }
  int64_t total() const {
    std::vector<size_t> each(count_);
    MPI_T_pvar_read(session_, handle_, each.data());
    return static_cast<int64_t>(std::accumulate(each.begin(), each.end(), size_t{0}));
  }

 private:
  MPI_T_pvar_session session_{};
  MPI_T_pvar_handle handle_{};
  int count_ = 0;
  bool found_ = false;
};

// Ranks show each other their calls before each collective: these bytes are not counted by bytes_sent().
int64_t calls_bytes(int calls) { return calls * static_cast<int64_t>(sizeof(CollectiveCall)) * (ranks->size() - 1); }

TEST(BytesSent, AllToAllRows) {
  const Counter sent("pml_monitoring_messages_size");
  if (!sent.found()) GTEST_SKIP() << "this MPI has no pml_monitoring_messages_size";
  const int64_t before = sent.total(), ours = ranks->bytes_sent();
  std::vector<int64_t> sends, receives;
  for (int peer = 0; peer < ranks->size(); ++peer) {
    sends.push_back(1000 * (ranks->rank() + 1) + peer);
    receives.push_back(1000 * (peer + 1) + ranks->rank());
  }
  const int64_t rows = std::accumulate(sends.begin(), sends.end(), int64_t{0});
  ranks->all_to_all_rows(at::zeros({rows, 7}), sends, receives);
  EXPECT_GT(ranks->bytes_sent(), ours);
  EXPECT_EQ(sent.total() - before, ranks->bytes_sent() - ours + calls_bytes(1));
}

TEST(BytesSent, AllGatherRows) {
  const Counter sent("coll_monitoring_messages_size");
  if (!sent.found()) GTEST_SKIP() << "this MPI has no coll_monitoring_messages_size";
  const int64_t before = sent.total(), ours = ranks->bytes_sent();
  std::vector<int64_t> counts;
  for (int peer = 0; peer < ranks->size(); ++peer) counts.push_back(1000 + 300 * peer);
  ranks->all_gather_rows(at::zeros({counts[ranks->rank()], 7}), counts);
  EXPECT_GT(ranks->bytes_sent(), ours);
  EXPECT_EQ(sent.total() - before, ranks->bytes_sent() - ours);
}

}  // namespace
}  // namespace muster::distributed

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const auto communicator = muster::distributed::make_mpi_communicator();
  muster::distributed::ranks = communicator.get();
  return RUN_ALL_TESTS();
}
