#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/parallel/contract.h"

namespace muster::distributed::contract {
namespace {

const auto kSummed = {at::kFloat, at::kDouble, at::kLong};
const auto kMoved = {at::kFloat, at::kDouble, at::kLong, at::kByte, at::kBFloat16, at::kBool};

OfRank parts(int64_t numel, at::ScalarType dtype) {
  return [=](int rank) { return part(numel, dtype, rank); };
}

OfRank rows(const std::vector<int64_t>& counts, const std::vector<int64_t>& trailing, at::ScalarType dtype) {
  return [=](int rank) {
    auto shape = trailing;
    shape.insert(shape.begin(), counts[rank]);
    return part(c10::multiply_integers(shape), dtype, rank).view(shape);
  };
}

// Same dtype, shape and bits.
void expect_same(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  EXPECT_EQ(actual.scalar_type(), expected.scalar_type()) << what;
  EXPECT_EQ(actual.sizes(), expected.sizes()) << what;
  EXPECT_TRUE(actual.is_contiguous() && actual.equal(expected)) << what;
}

std::string label(at::ScalarType dtype, int64_t numel) {
  return std::string(c10::toString(dtype)) + " " + std::to_string(numel);
}

void sums(Communicator& ranks, Peer& peer) {
  const auto compare = [&](at::ScalarType dtype, int64_t numel) {
    const at::Tensor tensor = part(numel, dtype, ranks.rank());
    ranks.all_reduce_sum(tensor);
    expect_same(tensor, peer.sum(parts(numel, dtype)), label(dtype, numel));
  };
  for (const auto dtype : kSummed)
    for (const int64_t numel : {0, 1, 7, 4097}) compare(dtype, numel);
  compare(at::kFloat, peer.large() / 4);
}

void sums_of_shapes(Communicator& ranks, Peer&) {
  const at::Tensor matrix = at::ones({3, 5}, at::kDouble), scalar = at::scalar_tensor(2.0, at::kDouble);
  ranks.all_reduce_sum(matrix);
  ranks.all_reduce_sum(scalar);
  EXPECT_TRUE(matrix.equal(at::full({3, 5}, static_cast<double>(ranks.size()), at::kDouble)));
  EXPECT_EQ(scalar.item<double>(), 2.0 * ranks.size());
}

void sums_have_the_same_bits(Communicator& ranks, Peer&) {
  for (const int64_t numel : {1, 1000, 1 << 18}) {
    const at::Tensor tensor = at::sin(at::arange(numel, at::kFloat) * (ranks.rank() + 1)) * 1e3;
    ranks.all_reduce_sum(tensor);
    const std::string own(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
    for (const auto& other : ranks.all_gather_bytes(own)) EXPECT_TRUE(other == own) << numel;
  }
}

// Rows per rank: some ranks with none.
std::vector<std::vector<int64_t>> count_patterns(int n) {
  std::vector<int64_t> even(n, 3), rising(n), only_last(n, 0), gaps(n), many(n);
  for (int r = 0; r < n; ++r) rising[r] = r, gaps[r] = r % 2 == 0 ? 0 : 5, many[r] = 3000 + 17 * r;
  only_last[n - 1] = 4;
  return {even, rising, only_last, gaps, many, std::vector<int64_t>(n, 0)};
}

void gathers(Communicator& ranks, Peer& peer) {
  const auto compare = [&](const std::vector<int64_t>& counts, const std::vector<int64_t>& trailing,
                           at::ScalarType dtype) {
    const OfRank put_in = rows(counts, trailing, dtype);
    const at::Tensor own = put_in(ranks.rank()), gathered = ranks.all_gather_rows(own, counts);
    expect_same(gathered, peer.gather(put_in), label(dtype, gathered.numel()));
    gathered.zero_();
    EXPECT_TRUE(own.equal(put_in(ranks.rank()))) << "the result must be a new tensor";
  };
  for (const auto& counts : count_patterns(ranks.size()))
    for (const auto dtype : kMoved)
      for (const auto& trailing : std::vector<std::vector<int64_t>>{{}, {1}, {13}, {2, 3}, {0}})
        compare(counts, trailing, dtype);
  compare(std::vector<int64_t>(ranks.size(), peer.large() / ranks.size()), {}, at::kByte);
}

void exchanges(Communicator& ranks, Peer& peer) {
  const int n = ranks.size(), own = ranks.rank();
  const auto compare = [&](const Counts& counts, const std::vector<int64_t>& trailing, at::ScalarType dtype) {
    std::vector<int64_t> given, receives;
    for (int r = 0; r < n; ++r) {
      given.push_back(std::accumulate(counts[r].begin(), counts[r].end(), int64_t{0}));
      receives.push_back(counts[r][own]);
    }
    const OfRank put_in = rows(given, trailing, dtype);
    const at::Tensor received = ranks.all_to_all_rows(put_in(own), counts[own], receives);
    expect_same(received, peer.exchange(put_in, counts), label(dtype, received.numel()));
  };
  Counts even(n, std::vector<int64_t>(n, 2)), uneven = even, to_first = even, ring = even, none = even, large = even;
  for (int from = 0; from < n; ++from)
    for (int to = 0; to < n; ++to) {
      uneven[from][to] = (7 * from + 3 * to) % 5;
      to_first[from][to] = to == 0 ? from + 1 : 0;
      ring[from][to] = to == (from + 1) % n ? 9 : 0;
      none[from][to] = 0;
      large[from][to] = peer.large() / 4 / n + from - to;
    }
  for (const auto& counts : {even, uneven, to_first, ring, none})
    for (const auto dtype : kMoved)
      for (const auto& trailing : std::vector<std::vector<int64_t>>{{}, {13}, {2, 3}, {0}})
        compare(counts, trailing, dtype);
  compare(large, {}, at::kFloat);
}

void broadcasts(Communicator& ranks, Peer& peer) {
  const auto compare = [&](at::ScalarType dtype, int64_t numel, int root) {
    const at::Tensor tensor = part(numel, dtype, ranks.rank());
    ranks.broadcast(tensor, root);
    expect_same(tensor, peer.broadcast(parts(numel, dtype), root), label(dtype, numel));
  };
  for (const auto dtype : kMoved)
    for (const int64_t numel : {0, 1, 4097})
      for (int root = 0; root < ranks.size(); ++root) compare(dtype, numel, root);
  compare(at::kByte, peer.large() + 3, ranks.size() - 1);
}

void byte_strings(Communicator& ranks, Peer&) {
  const auto compare = [&](const char* what, const std::function<std::string(int)>& text_of) {
    const auto gathered = ranks.all_gather_bytes(text_of(ranks.rank()));
    ASSERT_EQ(static_cast<int>(gathered.size()), ranks.size());
    for (int rank = 0; rank < ranks.size(); ++rank)
      EXPECT_TRUE(gathered[rank] == text_of(rank)) << what << ", rank " << rank;
  };
  compare("empty", [](int) { return std::string(); });
  compare("uneven", [](int rank) { return std::string(7 * rank, static_cast<char>('a' + rank)); });
  compare("only rank 0", [](int rank) { return rank == 0 ? std::string("x") : std::string(); });
  compare("embedded zeros", [](int rank) { return std::string("a\0b\0", 4) + std::string(rank, '\0') + '\xff'; });
  compare("1 MB", [](int rank) {
    std::string text((1 << 20) + rank, ' ');
    for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 + rank);
    return text;
  });
}

void refusals(Communicator& ranks, Peer&) {
  const std::vector<int64_t> twos(ranks.size(), 2);
  EXPECT_THROW(ranks.all_reduce_sum(at::zeros({4}, at::kBFloat16)), Error);
  EXPECT_THROW(ranks.all_reduce_sum(at::zeros({4, 4}).t().slice(0, 0, 2)), Error);
  EXPECT_THROW(ranks.all_gather_rows(at::zeros({3}), twos), Error);
  EXPECT_THROW(ranks.all_gather_rows(at::zeros({3}), std::vector<int64_t>(ranks.size() + 1, 3)), Error);
  EXPECT_THROW(ranks.all_gather_rows(at::zeros({}), twos), Error);
  EXPECT_THROW(ranks.all_to_all_rows(at::zeros({2 * ranks.size() + 1}), twos, twos), Error);
  EXPECT_THROW(ranks.all_to_all_rows(at::zeros({2 * ranks.size()}), twos, {}), Error);
  EXPECT_THROW(ranks.broadcast(at::zeros({3}), ranks.size()), Error);
  EXPECT_THROW(ranks.broadcast(at::zeros({3}), -1), Error);
  EXPECT_THROW(ranks.split(-1), Error);
  sums_of_shapes(ranks, *std::make_unique<PlainPeer>(0, 1));  // nothing was sent
}

void counted_bytes(Communicator& ranks, Peer&) {
  const int64_t n = ranks.size(), others = n - 1, start = ranks.bytes_sent();
  int64_t expected = 0;
  const auto expect = [&](int64_t more, const char* what) {
    EXPECT_EQ(ranks.bytes_sent() - start, expected += more) << what;
  };
  ranks.all_reduce_sum(at::zeros({60 * n}));
  expect(2 * 240 * others, "all_reduce_sum");
  ranks.all_gather_rows(at::zeros({3, 5}, at::kDouble), std::vector<int64_t>(n, 3));
  expect(120 * others, "all_gather_rows");
  std::vector<int64_t> sends(n), receives(n);
  for (int r = 0; r < n; ++r) sends[r] = 3 + r + ranks.rank(), receives[r] = 3 + r + ranks.rank();
  const int64_t given = std::accumulate(sends.begin(), sends.end(), int64_t{0});
  ranks.all_to_all_rows(at::zeros({given, 7}, at::kByte), sends, receives);
  expect(7 * (given - sends[ranks.rank()]), "all_to_all_rows");
  ranks.broadcast(at::zeros({11}, at::kLong), 0);
  expect(ranks.rank() == 0 ? 88 * others : 0, "broadcast");
  ranks.all_gather_bytes("control");
  expect(0, "all_gather_bytes");
}

// The collectives of a group against a plain sum over its members.
void use_group(Communicator& group, const std::vector<int>& members, int own) {
  ASSERT_EQ(group.size(), static_cast<int>(members.size()));
  ASSERT_EQ(members[group.rank()], own);
  EXPECT_EQ(group.bytes_sent(), 0);
  PlainPeer plain(group.rank(), group.size());
  const OfRank put_in = [&](int member) { return part(100, at::kLong, members[member]); };
  const at::Tensor sum = put_in(group.rank());
  group.all_reduce_sum(sum);
  expect_same(sum, plain.sum(put_in), "group sum");
  const std::vector<int64_t> counts(members.size(), 100);
  expect_same(group.all_gather_rows(put_in(group.rank()), counts), plain.gather(put_in), "group rows");
  const at::Tensor root = put_in(group.rank());
  group.broadcast(root, group.size() - 1);
  expect_same(root, plain.broadcast(put_in, group.size() - 1), "group broadcast");
}

void splits(Communicator& ranks, Peer&) {
  const auto check = [&](const std::function<int(int)>& group_of) {
    std::vector<int> members;
    for (int r = 0; r < ranks.size(); ++r)
      if (group_of(r) == group_of(ranks.rank())) members.push_back(r);
    const auto group = ranks.split(group_of(ranks.rank()));
    use_group(*group, members, ranks.rank());
    // Groups go their own ways, different numbers of collectives included, and meet again in the whole.
    for (int extra = 0; extra < 3 * group_of(ranks.rank()); ++extra) group->all_gather_bytes("x");
    const auto alone = group->split(group->rank());
    use_group(*alone, {ranks.rank()}, ranks.rank());
    const auto again = group->split(0);
    use_group(*again, members, ranks.rank());
    EXPECT_EQ(ranks.all_gather_bytes("here").size(), static_cast<size_t>(ranks.size()));
  };
  check([](int rank) { return rank % 2; });           // interleaved
  check([](int rank) { return rank == 0 ? 1 : 0; });  // sizes 1 and W - 1
  check([](int) { return 5; });                       // all
  check([](int rank) { return rank; });               // each alone
  check([](int rank) { return rank < 3 ? 2 : 7; });
}

void groups_at_once(Communicator& ranks, Peer&) {
  const int side = ranks.rank() % 2;
  const auto group = ranks.split(side);
  for (int round = 0; round < 50; ++round) {
    if (side == 0) {
      const at::Tensor ones = at::ones({1000 + round});
      group->all_reduce_sum(ones);
      EXPECT_TRUE(ones.equal(at::full_like(ones, group->size())));
    } else {
      const std::vector<int64_t> counts(group->size(), round);
      EXPECT_EQ(group->all_to_all_rows(at::zeros({round * group->size(), 2}, at::kByte), counts, counts).size(0),
                round * group->size());
    }
  }
}

}  // namespace

at::Tensor part(int64_t numel, at::ScalarType dtype, int rank) {
  const at::Tensor places = at::arange(numel, at::kInt).remainder_(1009);
  return places.mul_(rank + 1).sub_(500 * rank).to(dtype);
}

at::Tensor PlainPeer::sum(const OfRank& put_in) {
  at::Tensor total = put_in(0).clone();
  for (int rank = 1; rank < size_; ++rank) total += put_in(rank);
  return total;
}

at::Tensor PlainPeer::gather(const OfRank& rows) {
  std::vector<at::Tensor> all;
  for (int rank = 0; rank < size_; ++rank) all.push_back(rows(rank));
  return at::cat(all);
}

at::Tensor PlainPeer::exchange(const OfRank& rows, const Counts& counts) {
  std::vector<at::Tensor> all;
  for (int from = 0; from < size_; ++from) {
    const int64_t start = std::accumulate(counts[from].begin(), counts[from].begin() + rank_, int64_t{0});
    all.push_back(rows(from).narrow(0, start, counts[from][rank_]));
  }
  return at::cat(all);
}

at::Tensor PlainPeer::broadcast(const OfRank& put_in, int root) { return put_in(root); }

std::vector<Check> collective_checks() {
  return {{"Sums", sums},
          {"SumsOfShapes", sums_of_shapes},
          {"SumsHaveTheSameBits", sums_have_the_same_bits},
          {"Gathers", gathers},
          {"Exchanges", exchanges},
          {"Broadcasts", broadcasts},
          {"ByteStrings", byte_strings},
          {"Refusals", refusals},
          {"CountedBytes", counted_bytes},
          {"Splits", splits},
          {"GroupsAtOnce", groups_at_once}};
}

}  // namespace muster::distributed::contract
