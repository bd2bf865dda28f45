// The communicator's contract with threads as ranks, and what is special about such a job.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "distributed/collective_call.h"
#include "distributed/threads.h"
#include "tests/parallel/contract.h"

namespace muster::distributed {
namespace {

using ::testing::HasSubstr;

class Contract : public ::testing::TestWithParam<contract::Check> {};

TEST_P(Contract, Holds) {
  for (const int ranks : {1, 2, 3, 4, 5, 6, 7, 8}) {
    run_as_threads(ranks, [&](Communicator& communicator) {
      contract::PlainPeer plain(communicator.rank(), ranks, int64_t{ranks == 3 ? 64 : 1} << 20);
      GetParam().run(communicator, plain);
    });
    ASSERT_FALSE(HasFailure()) << "with " << ranks << " ranks";
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, Contract, ::testing::ValuesIn(contract::all_checks()),
                         [](const auto& info) { return info.param.name; });

std::string failure_of(int ranks, const std::function<void(Communicator&)>& body,
                       double deadline = collective_deadline().count()) {
  try {
    run_as_threads(ranks, body, std::chrono::duration<double>(deadline));
  } catch (const Error& error) {
    return std::to_string(static_cast<int>(error.code())) + ": " + error.what();
  }
  return "no error";
}

TEST(Threads, RunsEveryRankOnce) {
  std::atomic<int> mask{0};
  run_as_threads(8, [&](Communicator& ranks) {
    EXPECT_EQ(ranks.size(), 8);
    EXPECT_EQ(ranks.local_rank(), ranks.rank());
    EXPECT_EQ(ranks.local_size(), 8);
    mask += 1 << ranks.rank();
  });
  EXPECT_EQ(mask, 255);
}

TEST(Threads, TheDeadlineNamesAbsentRanks) {
  for (const int ranks : {2, 3, 4}) {
    std::atomic<int> heard{0};
    std::atomic<bool> all_heard{false};
    const std::string text = failure_of(
        ranks,
        [&](Communicator& communicator) {
          communicator.all_reduce_sum(at::zeros({3}));
          if (communicator.rank() == 1) {
            while (!all_heard) std::this_thread::yield();
            return;
          }
          try {
            communicator.all_reduce_sum(at::zeros({7}));
          } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::kPeerFailed);
            EXPECT_THAT(error.what(), HasSubstr("rank 1 did not reach collective 2 of world (" + std::to_string(ranks) +
                                                " ranks), all_reduce_sum(float32 [7]), within 0.3"));
            EXPECT_THAT(error.what(), HasSubstr("all completed: all_reduce_sum(float32 [3]), number 1."));
            EXPECT_THROW(communicator.all_gather_bytes("x"), Error) << "it must not be used again";
            if (++heard == ranks - 1) all_heard = true;
          }
        },
        0.3);
    EXPECT_EQ(text, "no error");
    EXPECT_EQ(heard, ranks - 1);
  }
}

TEST(Threads, AFailedRankWakesTheOthers) {
  for (const int ranks : {2, 3, 8}) {
    std::atomic<int> woken{0};
    const std::string text = failure_of(ranks, [&](Communicator& communicator) {
      if (communicator.rank() == 1) throw Error(ExitCode::kBadData, "sample 17 is broken");
      try {
        communicator.all_gather_bytes("x");
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::kPeerFailed);
        EXPECT_THAT(error.what(),
                    HasSubstr("rank 1 does not reach collective 1 of world, all_gather_bytes(): it has failed: "
                              "sample 17 is broken"));
        ++woken;
        throw;
      }
    });
    EXPECT_EQ(text, "65: sample 17 is broken") << "the cause, not its consequences";
    EXPECT_EQ(woken, ranks - 1);
  }
}

TEST(Threads, AFailedRankWakesItsGroupOnly) {
  std::atomic<int> done{0};
  const std::string text = failure_of(4, [&](Communicator& communicator) {
    const auto group = communicator.split(communicator.rank() / 2);
    if (communicator.rank() == 3) throw Error(ExitCode::kIo, "broken");
    group->all_reduce_sum(at::zeros({1}));
    ++done;
  });
  EXPECT_EQ(text, "74: broken");
  EXPECT_EQ(done, 2);
}

TEST(Threads, ARankThatHasEndedIsNotWaitedFor) {
  EXPECT_THAT(
      failure_of(3,
                 [](Communicator& communicator) {
                   if (communicator.rank() != 2) communicator.broadcast(at::zeros({4}), 0);
                 }),
      HasSubstr("76: rank 2 does not reach collective 1 of world, broadcast(float32 [4], root 0): it has ended."));
}

TEST(Threads, AbortEndsTheJobNotTheProcess) {
  EXPECT_EQ(failure_of(3,
                       [](Communicator& communicator) {
                         if (communicator.rank() == 1) communicator.abort(ExitCode::kIo);
                         communicator.all_reduce_sum(at::zeros({1}));
                       }),
            "74: rank 1 ended the job with exit code 74");
}

TEST(Threads, SumsInRankOrder) {
  run_as_threads(5, [](Communicator& ranks) {
    const auto value = [](int rank) {
      return at::sin(at::arange(1001, at::kFloat) + rank) * std::pow(10.0f, 2 - rank);
    };
    const at::Tensor tensor = value(ranks.rank());
    ranks.all_reduce_sum(tensor);
    at::Tensor expected = value(0);
    for (int rank = 1; rank < 5; ++rank) expected = expected + value(rank);
    EXPECT_TRUE(tensor.equal(expected));
  });
}

TEST(CollectiveCall, ListsRanks) {
  EXPECT_EQ(list_ranks({3}), "rank 3");
  EXPECT_EQ(list_ranks({1, 0}), "ranks 0 and 1");
  EXPECT_EQ(list_ranks({0, 1, 3}), "ranks 0, 1 and 3");
  EXPECT_EQ(list_ranks({8, 0, 1, 5, 6, 7}), "ranks 0, 1 and 5-8");
}

}  // namespace
}  // namespace muster::distributed
