// A rank that leaves the common path: every rank learns who, what it called and what the others called; afterwards all
// go on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "distributed/collective_call.h"
#include "tests/parallel/contract.h"

namespace muster::distributed::contract {
namespace {

using ::testing::HasSubstr;
using Act = std::function<void(Communicator&)>;

// `culprit` does `other` where all others do `usual`; both are described by what the message must call them.
std::string differ(Communicator& ranks, int culprit, const Act& usual, const std::string& usual_text, const Act& other,
                   const std::string& other_text) {
  const std::string text = outcome(ranks, [&] { (ranks.rank() == culprit ? other : usual)(ranks); });
  std::vector<int> rest;
  for (int rank = 0; rank < ranks.size(); ++rank)
    if (rank != culprit) rest.push_back(rank);
  EXPECT_THAT(text, HasSubstr("70: Ranks disagree about collective "));
  EXPECT_THAT(text, HasSubstr(" of world (" + std::to_string(ranks.size()) + " ranks): "));
  EXPECT_THAT(text, HasSubstr("rank " + std::to_string(culprit) + " called " + other_text));
  EXPECT_THAT(text, HasSubstr(list_ranks(rest) + " called " + usual_text));
  // Of two ranks neither is right or wrong; of more, the single one is.
  EXPECT_THAT(text, HasSubstr("while " + (ranks.size() == 2 ? "rank 0" : list_ranks(rest)) + " called"));
  const at::Tensor one = at::ones({1});
  ranks.all_reduce_sum(one);
  EXPECT_EQ(one.item<float>(), static_cast<float>(ranks.size())) << "all have met and can go on";
  return text;
}

const Act kSum = [](Communicator& ranks) { ranks.all_reduce_sum(at::zeros({7})); };
const char* const kSumText = "all_reduce_sum(float32 [7])";

void another_kind(Communicator& ranks, Peer&) {
  if (ranks.size() == 1) return;  // one rank cannot disagree
  for (int culprit = 0; culprit < ranks.size(); ++culprit) {
    differ(
        ranks, culprit, kSum, kSumText, [](Communicator& r) { r.broadcast(at::zeros({7}), 1); },
        "broadcast(float32 [7], root 1)");
    differ(
        ranks, culprit, kSum, kSumText, [](Communicator& r) { r.all_gather_bytes("x"); }, "all_gather_bytes()");
    differ(
        ranks, culprit, kSum, kSumText, [](Communicator& r) { r.split(0); }, "split()");
  }
}

void another_dtype_size_or_root(Communicator& ranks, Peer&) {
  if (ranks.size() == 1) return;  // one rank cannot disagree
  for (int culprit = 0; culprit < ranks.size(); ++culprit) {
    differ(
        ranks, culprit, kSum, kSumText, [](Communicator& r) { r.all_reduce_sum(at::zeros({7}, at::kDouble)); },
        "all_reduce_sum(float64 [7])");
    differ(
        ranks, culprit, kSum, kSumText, [](Communicator& r) { r.all_reduce_sum(at::zeros({8})); },
        "all_reduce_sum(float32 [8])");
    differ(
        ranks, culprit, kSum, kSumText,
        [](Communicator& r) {
          r.all_reduce_sum(at::zeros({7, 1}));
        },
        "all_reduce_sum(float32 [7, 1])");
    differ(
        ranks, culprit, [](Communicator& r) { r.broadcast(at::zeros({0}), 0); }, "broadcast(float32 [0], root 0)",
        [](Communicator& r) { r.broadcast(at::zeros({0}), 1); }, "broadcast(float32 [0], root 1)");
    // Only the fifth size differs, which the message does not show.
    differ(
        ranks, culprit,
        [](Communicator& r) {
          r.all_reduce_sum(at::zeros({1, 2, 3, 4, 5}));
        },
        "all_reduce_sum(float32 [1, 2, 3, 4, ...])",
        [](Communicator& r) {
          r.all_reduce_sum(at::zeros({1, 2, 3, 4, 6}));
        },
        "all_reduce_sum(float32 [1, 2, 3, 4, ...])");
  }
}

void other_row_counts(Communicator& ranks, Peer&) {
  if (ranks.size() == 1) return;  // one rank cannot disagree
  const std::vector<int64_t> twos(ranks.size(), 2);
  for (int culprit = 0; culprit < ranks.size(); ++culprit) {
    differ(
        ranks, culprit,
        [&](Communicator& r) {
          r.all_gather_rows(at::zeros({2, 3}), twos);
        },
        "all_gather_rows(float32 rows of [3], 2 here)",
        [&](Communicator& r) {
          r.all_gather_rows(at::zeros({2, 4}), twos);
        },
        "all_gather_rows(float32 rows of [4], 2 here)");
    auto other = twos;
    other[(culprit + 1) % ranks.size()] = 9;  // wrong about a peer, right about itself
    const std::string text = differ(
        ranks, culprit,
        [&](Communicator& r) {
          r.all_gather_rows(at::zeros({2, 3}), twos);
        },
        "all_gather_rows(float32 rows of [3], 2 here)",
        [&](Communicator& r) {
          r.all_gather_rows(at::zeros({2, 3}), other);
        },
        "all_gather_rows(float32 rows of [3], 2 here)");
    EXPECT_THAT(text, HasSubstr(" with another list of row counts or other sizes, while "));
  }
}

void misfitting_exchange(Communicator& ranks, Peer&) {
  if (ranks.size() == 1) return;  // one rank cannot disagree
  const std::vector<int64_t> twos(ranks.size(), 2);
  for (int culprit = 0; culprit < ranks.size(); ++culprit) {
    const int peer = (culprit + 1) % ranks.size();
    const std::string text = outcome(ranks, [&] {
      auto receives = twos;
      if (ranks.rank() == culprit) receives[peer] = 5;
      ranks.all_to_all_rows(at::zeros({2 * ranks.size(), 3}), twos, receives);
    });
    EXPECT_THAT(text, HasSubstr("70: Counts do not match in collective "));
    EXPECT_THAT(text, HasSubstr("all_to_all_rows: rank " + std::to_string(peer) + " sends 2 rows to rank " +
                                std::to_string(culprit) + ", which expects 5."));
    kSum(ranks);
  }
}

void skipped(Communicator& ranks, Peer&) {
  if (ranks.size() == 1) return;  // one rank cannot disagree
  for (int culprit = 0; culprit < ranks.size(); ++culprit)
    differ(
        ranks, culprit, [](Communicator& r) { kSum(r), r.broadcast(at::zeros({3}), 0); }, kSumText,
        [](Communicator& r) { r.broadcast(at::zeros({3}), 0); }, "broadcast(float32 [3], root 0)");
}

void numbered(Communicator& ranks, Peer&) {
  if (ranks.size() == 1) return;  // one rank cannot disagree
  const auto fresh = ranks.split(0);
  kSum(*fresh);
  std::string text;
  try {
    if (ranks.rank() == 1)
      fresh->all_gather_bytes("x");
    else
      kSum(*fresh);
  } catch (const SharedError&) {
    ADD_FAILURE() << "a part of the job must not speak for all of it";
  } catch (const Error& error) {
    text = error.what();
  }
  EXPECT_THAT(text, HasSubstr("collective 2 of world/0 (" + std::to_string(ranks.size()) + " ranks)"));
}

void names_of_the_job(Communicator& ranks, Peer&) {
  if (ranks.size() < 4) return;  // needs a group of two that does not begin with rank 0
  const auto group = ranks.split(ranks.rank() % 2);
  std::string text;
  try {
    if (ranks.rank() == 3)
      group->all_gather_bytes("x");
    else
      kSum(*group);
  } catch (const Error& error) {
    text = error.what();
  }
  // Rank 1 of group 1 is rank 3 of the job; group 0 does not notice.
  if (ranks.rank() % 2 == 0) {
    EXPECT_EQ(text, "");
  } else {
    EXPECT_THAT(text, HasSubstr("rank 3 called all_gather_bytes()"));
  }
}

}  // namespace

std::string outcome(Communicator& communicator, const std::function<void()>& work) {
  std::string text = "no error";
  try {
    work();
  } catch (const SharedError& error) {
    text = std::to_string(static_cast<int>(error.code())) + ": " + error.what();
  }
  for (const auto& other : communicator.all_gather_bytes(text)) EXPECT_EQ(other, text);
  return text;
}

std::vector<Check> order_checks() {
  return {{"AnotherKind", another_kind},
          {"AnotherDtypeSizeOrRoot", another_dtype_size_or_root},
          {"OtherRowCounts", other_row_counts},
          {"MisfittingExchange", misfitting_exchange},
          {"Skipped", skipped},
          {"Numbered", numbered},
          {"NamesOfTheJob", names_of_the_job}};
}

}  // namespace muster::distributed::contract
