#include "launcher/work/work_source.h"

#include <poll.h>

#include <vector>

#include "distributed/watchdog.h"

namespace muster::launcher {

using distributed::ControlChannel;
using nlohmann::json;

std::string message_text(const json& message) { return message.dump(-1, ' ', false, json::error_handler_t::replace); }

WorkServer::WorkServer(WorkSource& source, int ranks, bool loopback)
    : source_(source), line_(0, ranks), address_(line_.listen(loopback)) {
  if (address_.empty())
    throw Error(ExitCode::kPeerFailed, "rank 0 cannot listen (TCP) for the other ranks, which ask it for work");
  thread_ = std::thread([this] { serve(); });
}

WorkServer::~WorkServer() {
  over_ = true;
  thread_.join();
}

json WorkServer::ask(const json& request) {
  const std::lock_guard guard(mutex_);
  if (!trouble_.empty()) throw Error(trouble_code_, trouble_);
  return source_.ask(request);
}

void WorkServer::serve() {
  while (!over_) {
    std::vector<pollfd> waits;
    line_.add_to(waits);
    ::poll(waits.data(), waits.size(), 100);
    for (const auto& event : line_.receive()) {
      if (event.kind != ControlChannel::Kind::kMessage) continue;
      json answer;
      try {
        answer = ask(json::parse(event.payload));
      } catch (const std::exception& error) {
        const auto* known = dynamic_cast<const Error*>(&error);
        const std::lock_guard guard(mutex_);
        trouble_ = error.what();
        trouble_code_ = known ? known->code() : ExitCode::kInternal;
        answer = {{"trouble", trouble_}, {"code", static_cast<int>(trouble_code_)}};
      }
      line_.send(event.rank, ControlChannel::Kind::kMessage, message_text(answer));
    }
  }
}

RemoteWorkSource::RemoteWorkSource(int rank, int ranks, const std::string& address) : line_(rank, ranks) {
  if (!line_.connect(address))
    throw Error(ExitCode::kPeerFailed,
                "rank " + std::to_string(rank) +
                    " cannot reach rank 0 by TCP to ask it for work: is there a firewall between the hosts?");
}

json RemoteWorkSource::ask(const json& request) {
  line_.send(0, ControlChannel::Kind::kMessage, message_text(request));
  while (true) {
    std::vector<pollfd> waits;
    line_.add_to(waits);
    ::poll(waits.data(), waits.size(), 1000);
    distributed::report_progress();
    for (const auto& event : line_.receive()) {
      if (event.kind == ControlChannel::Kind::kEnd)
        throw Error(ExitCode::kPeerFailed, "rank 0, which hands out the work, is gone");
      if (event.kind != ControlChannel::Kind::kMessage) continue;
      json answer = json::parse(event.payload);
      if (answer.contains("trouble"))
        throw Error(static_cast<ExitCode>(answer["code"].get<int>()), answer["trouble"].get<std::string>());
      return answer;
    }
  }
}

}  // namespace muster::launcher
