#include "core/run/environment.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace muster::run {
namespace {

nlohmann::json rank(int number, const std::string& host, const std::string& device, const std::string& cores,
                    int threads) {
  return {{"rank", number}, {"host", host}, {"device", device}, {"cores", cores}, {"threads", threads}};
}

TEST(RankTable, OneRowPerRank) {
  EXPECT_EQ(rank_table({rank(0, "node1", "cuda:0 H200", "0-7", 8), rank(1, "node1", "cuda:1 H200", "8-15", 8),
                        rank(2, "n2", "cpu", "0-127", 12)}),
            "rank  host   device       cores  threads\n"
            "0     node1  cuda:0 H200  0-7    8\n"
            "1     node1  cuda:1 H200  8-15   8\n"
            "2     n2     cpu          0-127  12");
}

TEST(RankTable, ManyRanksShareRows) {
  nlohmann::json ranks = nlohmann::json::array();
  for (int r = 0; r < 24; ++r)
    ranks.push_back(rank(r, r < 8 ? "a" : "b", "cuda:" + std::to_string(r % 8) + " H200", r % 8 < 4 ? "0-31" : "32-63",
                         r == 23 ? 4 : 8));
  EXPECT_EQ(rank_table(ranks),
            "rank  host  device         cores         threads\n"
            "0-7   a     cuda:0-7 H200  0-31 | 32-63  8\n"
            "8-22  b     cuda:0-7 H200  0-31 | 32-63  8\n"
            "23    b     cuda:7 H200    32-63         4");
}

TEST(RankTable, StaysOneScreen) {
  nlohmann::json ranks = nlohmann::json::array();
  for (int r = 0; r < 100; ++r) ranks.push_back(rank(r, "host" + std::to_string(r), "cpu", std::to_string(r), 1));
  const std::string table = rank_table(ranks);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 41);
  EXPECT_NE(table.find("... and 60 rows more"), std::string::npos) << table;
}

}  // namespace
}  // namespace muster::run
