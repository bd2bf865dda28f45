// The connections between watchdogs: only ranks of the job get one, and how one ends is seen.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "distributed/control_channel.h"

namespace muster::distributed {
namespace {

using Kind = ControlChannel::Kind;

// Events at `end` until `enough`, for 5 s at most; `other` (may be null) is served meanwhile.
std::vector<ControlChannel::Event> until(ControlChannel& end, ControlChannel* other,
                                         const std::function<bool(const std::vector<ControlChannel::Event>&)>& enough) {
  std::vector<ControlChannel::Event> all;
  for (int round = 0; round < 500 && !enough(all); ++round) {
    if (other) other->receive();
    for (auto& event : end.receive()) all.push_back(std::move(event));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(enough(all));
  return all;
}

TEST(ControlChannel, CarriesMessagesBothWays) {
  ControlChannel zero(0, 3), one(1, 3), two(2, 3);
  const std::string address = zero.listen({ControlChannel::kLoopback});
  ASSERT_EQ(address.size(), ControlChannel::kAddressBytes);
  ASSERT_TRUE(one.connect(address) && two.connect(address));
  until(zero, nullptr, [&](const auto&) { return zero.reaches(1) && zero.reaches(2); });
  const std::string large(300000, 'x');
  zero.send(2, Kind::kVerdict, large);
  const auto got = until(two, &zero, [](const auto& events) { return !events.empty(); });
  EXPECT_TRUE(got[0].kind == Kind::kVerdict && got[0].rank == 0 && got[0].payload == large);
  EXPECT_TRUE(one.receive().empty());
  one.send(0, Kind::kStatus, "a");
  one.send(0, Kind::kStatus, "");
  const auto heard = until(zero, nullptr, [](const auto& events) { return events.size() == 2; });
  EXPECT_TRUE(heard[0].rank == 1 && heard[0].payload == "a" && heard[1].payload.empty());
}

TEST(ControlChannel, AnEndIsSeenAfterTheLastWord) {
  ControlChannel zero(0, 2);
  const std::string address = zero.listen({ControlChannel::kLoopback});
  {
    ControlChannel one(1, 2);
    ASSERT_TRUE(one.connect(address));
    one.send(0, Kind::kLeaving, "bye");
  }
  const auto events = until(zero, nullptr, [](const auto& all) { return all.size() >= 2; });
  ASSERT_EQ(events.size(), 2u);
  EXPECT_TRUE(events[0].kind == Kind::kLeaving && events[1].kind == Kind::kEnd && events[1].rank == 1);
  EXPECT_FALSE(zero.reaches(1));
}

TEST(ControlChannel, StrangersAreTurnedAway) {
  ControlChannel zero(0, 3), other_job(0, 3);
  const std::string address = zero.listen({ControlChannel::kLoopback}),
                    theirs = other_job.listen({ControlChannel::kLoopback});
  // The right port with another job's token; a rank that does not exist; a rank that is there already; noise.
  std::string forged = address;
  std::memcpy(forged.data(), theirs.data(), 16);
  ControlChannel stranger(1, 3), beyond(3, 4), one(1, 3), twin(1, 3);
  ASSERT_TRUE(stranger.connect(forged) && beyond.connect(address) && one.connect(address));
  until(zero, nullptr, [&](const auto&) { return zero.reaches(1); });
  ASSERT_TRUE(twin.connect(address));
  for (ControlChannel* each : {&stranger, &beyond, &twin}) {
    const auto events = until(*each, &zero, [](const auto& all) { return !all.empty(); });
    EXPECT_EQ(events[0].kind, Kind::kEnd);
  }
  EXPECT_TRUE(zero.reaches(1));
  one.send(0, Kind::kStatus, "still here");
  EXPECT_EQ(until(zero, nullptr, [](const auto& all) { return !all.empty(); })[0].payload, "still here");
}

TEST(ControlChannel, SilentStrangersTakeNoRanksPlace) {
  ControlChannel zero(0, 3), one(1, 3);
  const std::string address = zero.listen({ControlChannel::kLoopback});
  uint16_t port;
  std::memcpy(&port, address.data() + 20 + 64, sizeof port);  // after token, count and addresses
  sockaddr_in there{};
  there.sin_family = AF_INET;
  there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  there.sin_port = port;
  std::vector<int> strangers;
  for (int i = 0; i < 200; ++i) {
    strangers.push_back(::socket(AF_INET, SOCK_STREAM, 0));
    ASSERT_EQ(::connect(strangers.back(), reinterpret_cast<sockaddr*>(&there), sizeof there), 0);
    if (i % 20 == 0) zero.receive();
  }
  ASSERT_TRUE(one.connect(address));
  until(zero, nullptr, [&](const auto&) { return zero.reaches(1); });
  std::vector<pollfd> waits;
  zero.add_to(waits);
  EXPECT_LT(waits.size(), 30u);  // the listener, rank 1, and a bounded number of strangers
  for (const int fd : strangers) ::close(fd);
}

TEST(ControlChannel, NobodyListens) {
  ControlChannel one(1, 2);
  EXPECT_FALSE(one.connect(std::string(ControlChannel::kAddressBytes, '\0')));
  EXPECT_FALSE(one.reaches(0));
  one.send(0, Kind::kStatus, "nobody hears");
}

}  // namespace
}  // namespace muster::distributed
