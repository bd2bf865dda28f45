#include "launcher/work/work_source.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>

namespace muster::launcher {
namespace {

using nlohmann::json;

// Fails when it is asked for that.
class FailingSource final : public WorkSource {
 public:
  json ask(const json& request) override {
    if (request["op"] == "fail") throw Error(ExitCode::kBadConfig, "no work is worth doing");
    return {{"do", "wait"}};
  }
};

ExitCode code_of(WorkSource& asked, const std::string& op) {
  try {
    asked.ask({{"op", op}});
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::kDone;
}

TEST(WorkServer, OnlyTheFirstRankThatFailsIsToldWhy) {
  FailingSource source;
  auto server = std::make_unique<WorkServer>(source, 3, std::vector{distributed::ControlChannel::kLoopback});
  RemoteWorkSource first(1, 3, server->address()), second(2, 3, server->address());
  EXPECT_EQ(server->ask({{"op", "next"}})["do"], "wait");
  EXPECT_EQ(second.ask({{"op", "next"}})["do"], "wait");
  EXPECT_EQ(code_of(first, "fail"), ExitCode::kBadConfig);

  auto other = std::async(std::launch::async, [&] { return code_of(second, "fail"); });
  EXPECT_EQ(other.wait_for(std::chrono::milliseconds(300)), std::future_status::timeout);
  server.reset();
  EXPECT_EQ(other.get(), ExitCode::kPeerFailed);
}

}  // namespace
}  // namespace muster::launcher
