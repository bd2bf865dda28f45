#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "distributed/tree_sum.h"
#include "tests/parallel/contract.h"

namespace muster::distributed::contract {
namespace {

using ::testing::HasSubstr;

void together_succeeds(Communicator& ranks, Peer&) {
  int runs = 0;
  EXPECT_EQ(outcome(ranks, [&] { run_on_all_ranks(ranks, [&] { ++runs; }); }), "no error");
  EXPECT_EQ(runs, 1);
}

void together_all_fail_alike(Communicator& ranks, Peer&) {
  EXPECT_EQ(outcome(ranks,
                    [&] { run_on_all_ranks(ranks, [] { throw Error(ExitCode::kBadConfig, "line 3: no such key"); }); }),
            "78: line 3: no such key");
}

void together_one_fails(Communicator& ranks, Peer&) {
  for (int failing = 0; failing < ranks.size(); ++failing) {
    const std::string text = outcome(ranks, [&] {
      run_on_all_ranks(ranks, [&] {
        if (ranks.rank() == failing) throw Error(ExitCode::kIo, "disk full");
      });
    });
    const std::string who = "rank " + std::to_string(failing) + " of " + std::to_string(ranks.size()) + ": ";
    EXPECT_EQ(text, "74: " + (ranks.size() == 1 ? "" : who) + "disk full");
  }
  const at::Tensor one = at::ones({1});
  ranks.all_reduce_sum(one);
  EXPECT_EQ(one.item<float>(), static_cast<float>(ranks.size()));
}

void together_some_fail_differently(Communicator& ranks, Peer&) {
  if (ranks.size() < 3) return;  // needs three ranks
  const std::string text = outcome(ranks, [&] {
    run_on_all_ranks(ranks, [&] {
      if (ranks.rank() == 1) throw std::runtime_error("a defect");
      if (ranks.rank() == 2) throw Error(ExitCode::kBadData, "bad\nfile");
    });
  });
  const std::string of = " of " + std::to_string(ranks.size()) + ": ";
  EXPECT_EQ(text, "70: rank 1" + of + "a defect\nrank 2" + of + "bad\nfile");
}

void require_same_names_who_differs(Communicator& ranks, Peer&) {
  const auto require = [&](const std::function<std::string(int)>& value_of) {
    return outcome(ranks, [&] { require_same(ranks, "the seed", value_of(ranks.rank()), "Use one seed."); });
  };
  EXPECT_EQ(require([](int) { return "7"; }), "no error");
  EXPECT_EQ(require([](int) { return ""; }), "no error");
  EXPECT_EQ(require([](int) { return std::string(100000, 'x'); }), "no error");
  if (ranks.size() == 1) return;
  const int last = ranks.size() - 1;
  const std::string others = last == 1   ? "rank 0 has "
                             : last == 2 ? "ranks 0 and 1 have "
                                         : "ranks 0-" + std::to_string(last - 1) + " have ";
  const std::string text = require([&](int rank) { return rank == last ? "8" : "7"; });
  EXPECT_THAT(text, HasSubstr("78: the seed differs between ranks: rank " + std::to_string(last) + " (host "));
  EXPECT_THAT(text, HasSubstr(") has \"8\", while " + others + "\"7\". Use one seed."));
  // Long values that differ only at their very end, and unprintable ones, are told apart but not shown.
  const std::string longer = require([&](int rank) { return std::string(100000, 'x') + (rank == last ? "a" : "b"); });
  EXPECT_THAT(longer, HasSubstr(") has another value, while " + others + "another value."));
  const std::string binary = require([&](int rank) { return std::string(1, static_cast<char>(rank == last ? 1 : 0)); });
  EXPECT_THAT(binary, HasSubstr("another value"));
  const auto other_code = [&] { require_same(ranks, "x", ranks.rank() == 0 ? "a" : "b", "", ExitCode::kBadData); };
  EXPECT_THAT(outcome(ranks, other_code), HasSubstr("65: x "));
}

// The thorough test of TreeSum runs on threads; this one is for the backend under it.
void tree_sums(Communicator& ranks, Peer&) {
  std::mt19937 random(99);  // the same on every rank
  for (int64_t leaves = 1; leaves <= 16; ++leaves) {
    const int64_t length = std::vector<int64_t>{0, 1, 3, 1001}[leaves % 4];
    const at::ScalarType dtype = leaves % 3 ? at::kFloat : at::kDouble;
    std::vector<int64_t> boundaries{0, leaves};
    for (int r = 1; r < ranks.size(); ++r) boundaries.push_back(random() % (leaves + 1));
    std::sort(boundaries.begin(), boundaries.end());
    const auto all = leaves_for_sums(leaves, length, dtype, leaves % 2 ? random() : 0);
    const at::Tensor expected = direct_tree(all, length, dtype);
    TreeSum sum(leaves, boundaries, ranks.rank());
    for (int step = 0; step < 2; ++step) {
      const at::Tensor arena = at::empty({length}, dtype), result = at::full({length}, -1, dtype);
      for (int64_t leaf = boundaries[ranks.rank()]; leaf < boundaries[ranks.rank() + 1]; ++leaf) {
        if (!all[leaf].defined()) continue;
        arena.copy_(all[leaf]);
        sum.add(leaf, arena);
        arena.fill_(-7);  // the caller's to reuse
      }
      sum.reduce(ranks, result);
      EXPECT_TRUE(same_bits(result, expected)) << leaves << " leaves of " << length << ", step " << step;
    }
  }
}

at::Tensor subtree(const std::vector<at::Tensor>& leaves, size_t lo, size_t hi) {
  if (hi - lo == 1) return leaves[lo];
  const size_t mid = lo + (hi - lo + 1) / 2;
  const at::Tensor left = subtree(leaves, lo, mid), right = subtree(leaves, mid, hi);
  return !left.defined() ? right : !right.defined() ? left : at::add(left, right);
}

}  // namespace

std::vector<at::Tensor> leaves_for_sums(int64_t leaves, int64_t length, at::ScalarType dtype, uint32_t absent) {
  std::vector<at::Tensor> all(leaves);
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    if (absent >> leaf & 1) continue;
    const at::Tensor places = at::arange(length, at::kDouble) + 1000 * leaf;
    all[leaf] = (at::sin(places * 12.9898) * at::pow(10.0, at::cos(places * 78.233) * 4)).to(dtype);  // 1e-4 to 1e4
  }
  return all;
}

at::Tensor direct_tree(const std::vector<at::Tensor>& leaves, int64_t length, at::ScalarType dtype) {
  const at::Tensor sum = subtree(leaves, 0, leaves.size());
  return sum.defined() ? sum : at::zeros({length}, dtype);
}

at::Tensor sum_in_order(const std::vector<at::Tensor>& leaves, int64_t length, at::ScalarType dtype) {
  at::Tensor sum = at::zeros({length}, dtype);
  for (const auto& leaf : leaves)
    if (leaf.defined()) sum = sum + leaf;
  return sum;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() &&
         (a.numel() == 0 || std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0);
}

std::vector<Check> agreement_checks() {
  return {{"TogetherSucceeds", together_succeeds},
          {"TogetherAllFailAlike", together_all_fail_alike},
          {"TogetherOneFails", together_one_fails},
          {"TogetherSomeFailDifferently", together_some_fail_differently},
          {"RequireSameNamesWhoDiffers", require_same_names_who_differs},
          {"TreeSums", tree_sums}};
}

std::vector<Check> all_checks() {
  std::vector<Check> checks = collective_checks();
  for (const auto& more : {order_checks(), agreement_checks()}) checks.insert(checks.end(), more.begin(), more.end());
  return checks;
}

}  // namespace muster::distributed::contract
