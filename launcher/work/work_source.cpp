#include "launcher/work/work_source.h"

#include <fmt/format.h>
#include <poll.h>

#include <chrono>
#include <vector>

#include "distributed/watchdog.h"

namespace muster::launcher {

using distributed::ControlChannel;
using nlohmann::json;

namespace {
constexpr std::chrono::seconds kAnotherRankEndsTheJob{10};  // longer than ending a job takes
}

std::string message_text(const json& message) { return message.dump(-1, ' ', false, json::error_handler_t::replace); }

WorkServer::WorkServer(WorkSource& source, int ranks, const std::vector<uint32_t>& addresses)
    : source_(source), channel_(0, ranks), address_(channel_.listen(addresses)) {
  if (address_.empty())
    throw Error(ExitCode::kPeerFailed, "rank 0 cannot listen (TCP) for the other ranks, which ask it for work");
  thread_ = std::thread([this] { serve(); });
}

WorkServer::~WorkServer() {
  done_ = true;
  thread_.join();
}

json WorkServer::ask(const json& request) {
  std::unique_lock lock(mutex_);
  if (error_) {
    lock.unlock();
    std::this_thread::sleep_for(kAnotherRankEndsTheJob);
    throw *error_;
  }
  return ask_source(request);
}

json WorkServer::ask_source(const json& request) {
  try {
    return source_.ask(request);
  } catch (const Error& error) {
    error_ = error;
    throw;
  } catch (const std::exception& error) {
    error_ = Error(ExitCode::kInternal, error.what());
    throw;
  }
}

void WorkServer::serve() {
  while (!done_) {
    std::vector<pollfd> waits;
    channel_.add_to(waits);
    ::poll(waits.data(), waits.size(), 100);
    for (const auto& event : channel_.receive()) {
      if (event.kind != ControlChannel::Kind::kMessage) continue;
      const std::lock_guard guard(mutex_);
      if (error_) continue;
      json answer;
      try {
        answer = ask_source(json::parse(event.payload, nullptr, /*allow_exceptions=*/false));
      } catch (const std::exception&) {
        answer = {{"error", error_->what()}, {"code", static_cast<int>(error_->code())}};
      }
      channel_.send(event.rank, ControlChannel::Kind::kMessage, message_text(answer));
    }
  }
}

RemoteWorkSource::RemoteWorkSource(int rank, int ranks, const std::string& address) : channel_(rank, ranks) {
  if (!channel_.connect(address))
    throw Error(ExitCode::kPeerFailed,
                fmt::format("rank {} cannot reach rank 0 by TCP to ask it for work: is there a firewall between the "
                            "hosts?",
                            rank));
}

json RemoteWorkSource::ask(const json& request) {
  channel_.send(0, ControlChannel::Kind::kMessage, message_text(request));
  while (true) {
    std::vector<pollfd> waits;
    channel_.add_to(waits);
    ::poll(waits.data(), waits.size(), 1000);
    distributed::report_progress();
    for (const auto& event : channel_.receive()) {
      if (event.kind == ControlChannel::Kind::kEnd)
        throw Error(ExitCode::kPeerFailed, "rank 0, which hands out the work, is gone");
      if (event.kind != ControlChannel::Kind::kMessage) continue;
      json answer = json::parse(event.payload);
      if (answer.contains("error"))
        throw Error(static_cast<ExitCode>(answer["code"].get<int>()), answer["error"].get<std::string>());
      return answer;
    }
  }
}

void stop_when_all_fail(const std::string& whole, const std::string& parts, int64_t ended, int64_t succeeded,
                        const std::string& name, const std::string& reason) {
  constexpr int64_t kHopeless = 10;
  if (ended < kHopeless || succeeded > 0) return;
  throw Error(ExitCode::kBadConfig, fmt::format("all {} {} of this job have failed, and none has ever succeeded, so "
                                                "the {} was stopped; the last one, {}: {}",
                                                ended, parts, whole, name, reason));
}

}  // namespace muster::launcher
