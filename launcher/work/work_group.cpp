#include "launcher/work/work_group.h"

#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <regex>

#include "base/text.h"
#include "core/run/stop.h"
#include "distributed/collective_call.h"
#include "distributed/network.h"
#include "distributed/packing.h"
#include "distributed/watchdog.h"

namespace muster::launcher {

using nlohmann::json;

namespace {

// Whether it is so on any of the ranks.
bool any(distributed::Communicator& ranks, bool here) {
  const auto answers = ranks.all_gather_bytes(here ? "yes" : "");
  return std::find(answers.begin(), answers.end(), "yes") != answers.end();
}

}  // namespace

void require_whole_groups(int ranks, uint32_t ranks_per_group, const std::string& field) {
  if (static_cast<uint32_t>(ranks) % ranks_per_group == 0) return;
  throw Error(ExitCode::kUsage,
              fmt::format("{} is {}, and the job's {} cannot be split into groups of {}: start a "
                          "multiple of {}, or set another {}",
                          field, ranks_per_group, plural(ranks, "rank"), ranks_per_group, ranks_per_group, field));
}

WorkGroup::WorkGroup(distributed::Communicator& world, uint32_t ranks_per_group, const config::Training& training,
                     WorkSource* source)
    : world_(world), source_(source) {
  ranks_ = world.split(world.rank() / static_cast<int>(ranks_per_group));
  trainer_ = std::make_unique<training::InProcessTrainer>(training, world, *ranks_);
  if (groups() == 1) return;
  std::string address;
  std::vector<distributed::NetworkAddresses> others;
  for (std::string& bytes : world.all_gather_bytes(distributed::bytes_of(distributed::own_addresses())))
    distributed::take_value(bytes, others.emplace_back());
  distributed::run_on_all_ranks(world, [&] {
    if (world.rank() != 0) return;
    const bool one_machine = world.local_size() == world.size();
    auto server = std::make_unique<WorkServer>(
        *source, world.size(),
        one_machine ? std::vector{distributed::ControlChannel::kLoopback} : distributed::addresses_facing(others));
    address = server->address();
    connection_ = std::move(server);
  });
  address = world.all_gather_bytes(address)[0];
  distributed::run_on_all_ranks(world, [&] {
    if (leads() && world.rank() != 0)
      connection_ = std::make_unique<RemoteWorkSource>(world.rank(), world.size(), address);
  });
  source_ = connection_.get();
}

json WorkGroup::ask(const json& request) {
  json answer;
  distributed::run_on_all_ranks(*ranks_, [&] {
    if (source_) answer = source_->ask(request);
  });
  return json::parse(ranks_->all_gather_bytes(source_ ? message_text(answer) : "")[0]);
}

// A signal that came while nothing was trained.
void WorkGroup::check_signals() {
  if (stopped_ || !any(*ranks_, run::stop_signal() != 0)) return;
  stopped_ = true;
  ask({{"op", "stopping"}});
}

void WorkGroup::stop_if_asked(const json& answer) {
  if (answer["stop"] && leads() && run::stop_signal() == 0) std::raise(SIGUSR2);
}

void WorkGroup::work(const std::function<void(const json& task)>& train) {
  while (true) {
    check_signals();
    const json task = ask({{"op", "next"}});
    if (task["do"] == "end") break;
    if (task["do"] == "wait") {
      ::usleep(200000);
      distributed::report_progress();
      continue;
    }
    train(task);
  }
}

void WorkGroup::run(const std::function<void(const json& task)>& train,
                    const std::function<void(bool stopped)>& finalize, const std::string& command) {
  try {
    work(train);
  } catch (const SharedError& error) {
    // Shared by the group only: the others would wait for this one for ever. One rank says it and takes the job down.
    if (groups() > 1 && leads()) throw Error(error.code(), error.what());
    throw;
  }
  const bool stopped = any(world_, stopped_ || run::stop_signal() != 0);
  distributed::run_on_all_ranks(world_, [&] {
    if (world_.rank() == 0) finalize(stopped);
  });
  if (stopped) throw SharedError(ExitCode::kRequeue, "stopped; what ran is saved. Continue with: " + command);
}

// What is thrown on some ranks only: the others are in a collective, or come to one. It does not fit the one that is
// called here, which is an error on every rank (communicator.h) and brings them here too.
SharedError WorkGroup::shared(const std::exception& own) {
  const auto* known = dynamic_cast<const Error*>(&own);
  const std::string outcome =
      std::string(1, static_cast<char>(known ? known->code() : ExitCode::kInternal)) + own.what();
  const distributed::CollectiveLabel label("what has failed");
  while (true) {
    try {
      const auto outcomes = ranks_->all_gather_bytes(outcome);
      const auto is_cause = [](const std::string& text) {
        return text.find("Ranks disagree about") == std::string::npos;
      };
      const auto cause = std::find_if(outcomes.begin(), outcomes.end(), is_cause);
      const std::string& first = cause == outcomes.end() ? outcomes[0] : *cause;
      return SharedError(static_cast<ExitCode>(first[0]), first.substr(1));
    } catch (const Error& error) {
      if (error.code() == ExitCode::kPeerFailed) throw;
    }
  }
}

Ending WorkGroup::attempt(const std::function<void()>& training, const std::string& too_long) {
  std::optional<SharedError> failure;
  try {
    training();
    return {};
  } catch (const run::SharedRunDirInUse& taken) {
    return {Ending::kElsewhere, reason_of(taken.what())};
  } catch (const SharedError& error) {
    failure = error;
  } catch (const std::exception& error) {
    const auto* known = dynamic_cast<const Error*>(&error);
    if (known && known->code() == ExitCode::kPeerFailed) throw;
    failure = shared(error);
  }
  switch (failure->code()) {
    case ExitCode::kRequeue:
      if (!any(*ranks_, run::stop_signal() != 0)) return {Ending::kFailed, too_long};
      stopped_ = true;
      ask({{"op", "stopping"}});
      return {Ending::kStopped, ""};
    case ExitCode::kIo:
    case ExitCode::kPeerFailed:
      throw *failure;
    default:
#if defined(__GLIBC__)
      // main.cpp keeps freed memory; what a run of another size has left in pieces may be what the next one lacks.
      ::malloc_trim(SIZE_MAX);  // but the heap's end stays: it is in huge pages (main.cpp)
#endif
      return {Ending::kFailed, reason_of(failure->what())};
  }
}

std::string reason_of(const std::string& message) {
  constexpr size_t kLongest = 300;
  std::smatch found;
  if (message.find("std::bad_alloc") != std::string::npos) return "out of memory";
  if (std::regex_search(message, found, std::regex("can't allocate memory: you tried to allocate (\\d+) bytes")))
    return fmt::format("out of memory ({:.3g} GB at once)", std::stod(found[1]) / 1e9);
  if (std::regex_search(message, found, std::regex("out of memory\\. Tried to allocate ([0-9.]+ \\w+)")))
    return "out of memory (" + found[1].str() + " at once)";
  // The end of the first message: what Torch's exceptions say of the stack follows.
  const size_t stack = std::min(message.find("\nframe #"), message.find("\nException raised from"));
  std::string reason;
  for (const char c : message.substr(0, stack)) {
    if (c == '\n')
      reason += ' ';
    else if (c != ' ' || reason.empty() || reason.back() != ' ')
      reason += c;
  }
  while (!reason.empty() && reason.back() == ' ') reason.pop_back();
  if (reason.size() <= kLongest) return reason;
  size_t end = kLongest - 3;
  while ((reason[end] & 0xC0) == 0x80) --end;  // not within a character of UTF-8
  return reason.substr(0, end) + "...";
}

void tidy_run(const std::string& run, const std::set<std::string>& kept, bool keep_weights) {
  std::error_code ignored;  // what cannot be removed only takes space
  for (const auto& entry : std::filesystem::directory_iterator(run, ignored)) {
    const std::string name = entry.path().filename().string();
    if (kept.count(name)) continue;
    if (name == "weights" && keep_weights)
      std::filesystem::remove(entry.path() / "last.safetensors", ignored);
    else
      std::filesystem::remove_all(entry.path(), ignored);
  }
}

}  // namespace muster::launcher
