// What is recorded of collectives, and what is said when a rank is lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "distributed/fault.h"
#include "distributed/flight_record.h"
#include "distributed/watchdog.h"
#include "distributed/watchdog_thread.h"

namespace muster::distributed {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

CollectiveCall sum_of(int64_t elements, int64_t sequence, const char* label) {
  CollectiveCall call;
  call.kind = Collective::kAllReduceSum;
  call.sequence = sequence;
  call.dtype = static_cast<int32_t>(at::kFloat);
  call.device = 0;
  call.dims = 1;
  call.shape[0] = elements;
  std::strncpy(call.label, label, sizeof call.label - 1);
  return call;
}

FlightEntry entry_of(const CollectiveCall& call, bool completed, const char* communicator = "world") {
  FlightEntry entry;
  entry.number = call.sequence;
  std::strncpy(entry.communicator, communicator, sizeof entry.communicator - 1);
  entry.call = call;
  entry.entered = 1000000;
  entry.completed = completed ? 2000000 : 0;
  return entry;
}

RankStatus waiting_in(int64_t sequence, const char* communicator = "world") {
  return {Phase::kStep, entry_of(sum_of(7, sequence, "gradients"), false, communicator),
          entry_of(sum_of(7, sequence - 1, "gradients"), true)};
}

TEST(FlightRecorder, KeepsTheLast64InOrder) {
  FlightRecorder recorder;
  EXPECT_EQ(recorder.last_entered().number, 0);
  for (int64_t sequence = 1; sequence <= 200; ++sequence) {
    const int64_t number = recorder.enter(sum_of(sequence, sequence, "gradients"), "world", Phase::kSave);
    ASSERT_EQ(number, sequence);
    EXPECT_EQ(recorder.last_entered().completed, 0);
    EXPECT_EQ(recorder.last_completed().number, sequence - 1);
    if (sequence < 200) recorder.complete(number);
  }
  const auto entries = recorder.entries();
  ASSERT_EQ(entries.size(), 64u);
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(entries[i].number, 137 + static_cast<int64_t>(i));
    EXPECT_EQ(entries[i].call.shape[0], entries[i].number);
    EXPECT_EQ(entries[i].completed > 0, i < 63);
    EXPECT_EQ(entries[i].phase, Phase::kSave);
  }
}

TEST(FlightRecorder, AnErrorIsNoCompletion) {
  FlightRecorder recorder;
  recorder.complete(recorder.enter(sum_of(1, 1, ""), "world", Phase::kStep));
  recorder.complete(recorder.enter(sum_of(1, 2, ""), "world", Phase::kStep), true);
  EXPECT_EQ(recorder.last_completed().number, 1);
  EXPECT_EQ(recorder.last_entered().completed, FlightEntry::kFailed);
}

TEST(FlightRecorder, MayBeReadWhileItIsWritten) {
  FlightRecorder recorder;
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int64_t sequence = 1; !stop; ++sequence)
      recorder.complete(recorder.enter(sum_of(sequence, sequence, "x"), "world", Phase::kStep));
  });
  for (int round = 0; round < 2000; ++round)
    for (const auto& entry : recorder.entries()) {
      ASSERT_EQ(entry.number, entry.call.sequence);
      ASSERT_EQ(entry.number, entry.call.shape[0]);
    }
  stop = true;
  writer.join();
}

TEST(FlightRecord, IsJson) {
  auto call = sum_of(7, 71, "gra\xff");
  const std::string text = flight_record_json({2, 4, "node7", Phase::kEvaluation, "why", {1, 3}},
                                              {entry_of(call, true), entry_of(sum_of(3, 72, ""), false)});
  const auto record = nlohmann::json::parse(text);
  EXPECT_EQ(record["format"], "muster-flight-record");
  EXPECT_EQ(record["rank"], 2);
  EXPECT_EQ(record["phase"], "evaluation");
  EXPECT_EQ(record["missing_ranks"], (std::vector<int>{1, 3}));
  EXPECT_EQ(record["collectives"][0]["sizes"], (std::vector<int>{7}));
  EXPECT_EQ(record["collectives"][0]["entered"], 1.0);
  EXPECT_EQ(record["collectives"][0]["completed"], 2.0);
  EXPECT_EQ(record["collectives"][1]["call"], "all_reduce_sum(float32 [3])");
  EXPECT_TRUE(record["collectives"][1]["completed"].is_null());
}

TEST(CollectiveLabel, TheInnermostCounts) {
  EXPECT_STREQ(CollectiveLabel::current(), "");
  const CollectiveLabel outer("gradients");
  {
    const CollectiveLabel inner("embeddings");
    EXPECT_STREQ(CollectiveLabel::current(), "embeddings");
    std::thread([] { EXPECT_STREQ(CollectiveLabel::current(), ""); }).join();
  }
  EXPECT_STREQ(CollectiveLabel::current(), "gradients");
  EXPECT_EQ(describe(sum_of(7, 1, "gradients")), "all_reduce_sum(float32 [7]) for gradients");
}

TEST(CollectiveLabel, IsPartOfWhatRanksCompare) {
  const RankNames names{"world", {0, 1, 2}};
  EXPECT_EQ(disagreement({sum_of(7, 4, "a"), sum_of(7, 4, "a"), sum_of(7, 4, "a")}, names), "");
  EXPECT_THAT(disagreement({sum_of(7, 4, "a"), sum_of(7, 4, "b"), sum_of(7, 4, "a")}, names),
              HasSubstr("rank 1 called all_reduce_sum(float32 [7]) for b, while ranks 0 and 2 called "
                        "all_reduce_sum(float32 [7]) for a"));
}

TEST(FaultMessage, NamesADeadRank) {
  std::vector<PeerView> ranks(3, {"node1", true, waiting_in(42), false, false});
  ranks[1].died = true;
  const std::string text = describe_fault({1}, ranks, waiting_in(42), 0);
  EXPECT_THAT(text, HasSubstr("rank 1 of 3 (host node1) is lost: its process has died, last seen in phase step after "
                              "collective 41 of world, "
                              "all_reduce_sum(float32 [7]) for gradients."));
  EXPECT_THAT(text, HasSubstr("dmesg"));
}

TEST(FaultMessage, SaysWhatEachAbsentRankDoes) {
  std::vector<PeerView> ranks(5, {"node1", true, waiting_in(42), false, false});
  ranks[0].status.entered = entry_of(sum_of(7, 41, "gradients"), true);
  ranks[1].silent = true;
  ranks[2].status = waiting_in(3, "world/1");
  ranks[3].heard = false;
  const std::string text = describe_fault({0, 1, 2, 3}, ranks, waiting_in(42), 2.5);
  EXPECT_THAT(
      text,
      HasSubstr("no progress in phase step for 2.5 s: rank 0 of 5 (host node1): it is still computing, last seen"));
  EXPECT_THAT(text, HasSubstr("rank 1 of 5 (host node1): its process does not run (stopped, or its machine is gone)"));
  EXPECT_THAT(text,
              HasSubstr("rank 2 of 5 (host node1): it waits elsewhere, in collective 3 of world/1, all_reduce_sum"));
  EXPECT_THAT(text, HasSubstr("rank 3 of 5 (host node1): nothing is known about it"));
  EXPECT_THAT(text, Not(HasSubstr("rank 4")));
}

TEST(FaultMessage, GroupsTheRanksOfALostMachine) {
  std::vector<PeerView> ranks(24, {"node1", true, waiting_in(42), false, false});
  std::vector<int> missing;
  for (int rank = 8; rank < 24; ++rank) {
    ranks[rank].host = rank < 16 ? "node2" : "node3";
    ranks[rank].died = true;
    missing.push_back(rank);
  }
  EXPECT_THAT(describe_fault(missing, ranks, waiting_in(42), 0),
              HasSubstr("ranks 8-15 of 24 (host node2): their processes have died; ranks 16-23 of 24 (host node3): "
                        "their processes have died."));
}

TEST(FaultMessage, BlamesNobodyWithoutReason) {
  const std::vector<PeerView> ranks(2, {"node1", true, waiting_in(42), false, false});
  EXPECT_THAT(describe_fault({}, ranks, waiting_in(42), 9),
              HasSubstr("all ranks run and have come to collective 42 of world"));
}

TEST(Phases, NestAndMayBeUsedWithoutAWatchdog) {
  set_deadlines({1, 2, 3, 0});
  EXPECT_EQ(deadline_of(Phase::kSave), 3);
  EXPECT_EQ(deadline_of(Phase::kEvaluation), 0);
  set_deadlines({});
  {
    const PhaseScope outer(Phase::kEvaluation);
    const PhaseScope inner(Phase::kSave);
    report_progress();
  }
  const AbortHook hook([] { FAIL() << "nothing has failed"; });
  yield_to_watchdog(ExitCode::kInternal);
}

}  // namespace
}  // namespace muster::distributed
