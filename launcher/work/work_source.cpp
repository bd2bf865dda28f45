#include "launcher/work/work_source.h"

#include <fmt/format.h>
#include <poll.h>

#include <vector>

#include "distributed/watchdog.h"

namespace muster::launcher {

using distributed::ControlChannel;
using nlohmann::json;

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
  const std::lock_guard guard(mutex_);
  if (!error_.empty()) throw Error(error_code_, error_);
  return source_.ask(request);
}

void WorkServer::serve() {
  while (!done_) {
    std::vector<pollfd> waits;
    channel_.add_to(waits);
    ::poll(waits.data(), waits.size(), 100);
    for (const auto& event : channel_.receive()) {
      if (event.kind != ControlChannel::Kind::kMessage) continue;
      json answer;
      try {
        answer = ask(json::parse(event.payload));
      } catch (const std::exception& error) {
        const auto* known = dynamic_cast<const Error*>(&error);
        const std::lock_guard guard(mutex_);
        error_ = error.what();
        error_code_ = known ? known->code() : ExitCode::kInternal;
        answer = {{"error", error_}, {"code", static_cast<int>(error_code_)}};
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
