#include "distributed/fault.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <thread>

#include "base/files.h"
#include "base/text.h"
#include "distributed/watchdog_thread.h"

namespace muster::distributed {
namespace {

constexpr size_t kMostNamed = 8;  // ranks whose place is described one by one

std::string text_of(const FlightEntry& entry) {
  return place(entry.call, entry.communicator) + ", " + describe(entry.call);
}

std::string last_seen(const PeerView& rank) {
  if (!rank.heard) return "never heard of";
  return fmt::format("last seen in phase {} {}", name_of(rank.status.phase),
                     rank.status.completed.number == 0 ? "before its first collective had completed"
                                                       : fmt::format("after {}", text_of(rank.status.completed)));
}

bool is_same(const FlightEntry& a, const FlightEntry& b) {
  return a.call.sequence == b.call.sequence && std::strcmp(a.communicator, b.communicator) == 0;
}

std::string reason(const PeerView& rank, const RankStatus& waiting, bool several) {
  if (rank.died) return several ? "their processes have died" : "its process has died";
  if (rank.silent)
    return several ? "their processes do not run (stopped, or their machine is gone)"
                   : "its process does not run (stopped, or its machine is gone)";
  if (!rank.heard) return several ? "nothing is known about them" : "nothing is known about it";
  if (rank.status.inside())
    return fmt::format("it waits {} {}", is_same(rank.status.entered, waiting.entered) ? "in" : "elsewhere, in",
                       text_of(rank.status.entered));
  return several ? "they are still computing" : "it is still computing";
}

std::string ranks_of(const std::vector<int>& group, const std::vector<PeerView>& ranks) {
  return fmt::format("{} of {} (host {})", list_ranks(group), ranks.size(), ranks[group[0]].host);
}

using namespace std::chrono_literals;

constexpr auto kLastResort = 3s;
constexpr int kReporting = 2000, kReportingElsewhere = 1600;  // milliseconds for the rank that prints the message
constexpr int kStaying = 1500, kRecording = 1400;

void write_file(const std::string& path, const std::string& text) {
  const std::string unfinished = path + ".unfinished";
  const Descriptor file(::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (file.get() < 0) return;
  try_write_all(file.get(), text);
  std::rename(unfinished.c_str(), path.c_str());
}

std::string record_of(const std::string& folder, int rank) {
  return fmt::format("{}/flight-record-rank-{}.json", folder, rank);
}

// Until every rank that is not missing has written its record: slower ones would be killed before they have.
void wait_for_records(const std::string& folder, const Ending& ending) {
  const auto is_written = [&](int rank) {
    return std::count(ending.missing.begin(), ending.missing.end(), rank) > 0 ||
           ::access(record_of(folder, rank).c_str(), F_OK) == 0;
  };
  int rank = 0;
  for (int waited = 0; waited < kRecording; waited += 20) {
    while (rank < ending.size && is_written(rank)) ++rank;
    if (rank == ending.size) return;
    ::poll(nullptr, 0, 20);
  }
}

void report_and_record(const Ending& ending) {
  const std::string* folder = flight_record_folder();
  std::string message = fmt::format("{} {}", ending.text, describe_place(ending.rank, ending.status));
  if (folder) message += fmt::format(" The last collectives of every rank: {}/flight-record-rank-*.json.", *folder);
  if (ending.reports) try_write_all(STDERR_FILENO, fmt::format("muster: {}\n", message));
  if (folder)
    write_file(record_of(*folder, ending.rank),
               flight_record_json({ending.rank, ending.size, ending.host, ending.status.phase, message, ending.missing},
                                  flight_recorder().entries()));
  run_abort_hooks();
  std::fflush(nullptr);
  // When the first process ends, mpirun kills the others: not before the message is printed and all have recorded.
  if (ending.reports && folder) wait_for_records(*folder, ending);
  pollfd printed{ending.reporters_process, POLLIN, 0};
  if (!ending.reports) ::poll(&printed, 1, printed.fd >= 0 ? kReporting : kReportingElsewhere);
  // Rank 0, which says who reports, is lost then. A slower rank must still see this process alive: otherwise it counts
  // it as lost too and prints a second message.
  else if (ending.rank != 0)
    ::poll(nullptr, 0, kStaying);
}

}  // namespace

std::string describe_fault(const std::vector<int>& missing, const std::vector<PeerView>& ranks,
                           const RankStatus& waiting, double no_progress) {
  std::vector<std::string> parts;
  if (missing.empty()) {
    parts.push_back(waiting.inside()
                        ? fmt::format("all ranks run and have come to {}, but it does not end; look at the "
                                      "network between them",
                                      text_of(waiting.entered))
                        : "no rank is known to have failed");
  } else if (missing.size() <= kMostNamed) {
    for (const int rank : missing)
      parts.push_back(fmt::format("{}{} {}, {}", ranks_of({rank}, ranks), no_progress > 0 ? ":" : " is lost:",
                                  reason(ranks[rank], waiting, false), last_seen(ranks[rank])));
  } else {
    std::map<std::pair<std::string, std::string>, std::vector<int>> groups;
    for (const int rank : missing) groups[{ranks[rank].host, reason(ranks[rank], waiting, true)}].push_back(rank);
    for (const auto& [place, members] : groups)
      parts.push_back(fmt::format("{}: {}", ranks_of(members, ranks), place.second));
  }
  const bool died = std::any_of(missing.begin(), missing.end(), [&](int rank) { return ranks[rank].died; });
  return fmt::format(
      "{}{}.{}",
      no_progress > 0 ? fmt::format("no progress in phase {} for {:g} s: ", name_of(waiting.phase), no_progress) : "",
      join(parts, "; "),
      died              ? " The system log of that machine (dmesg) says whether it ran out of memory."
      : no_progress > 0 ? " MUSTER_COLLECTIVE_TIMEOUT sets how many seconds to wait."
                        : "");
}

std::string describe_place(int rank, const RankStatus& status) {
  return fmt::format("Rank {} {}, in phase {}; the last that it completed: {}.", rank,
                     status.inside() ? "waits in " + text_of(status.entered) : "is outside any collective",
                     name_of(status.phase), status.completed.number == 0 ? "none" : text_of(status.completed));
}

void end_process(const Ending& ending) {
  try {
    auto done = std::make_shared<std::promise<void>>();
    std::thread([ending, done] {
      report_and_record(ending);
      done->set_value();
    }).detach();
    done->get_future().wait_for(kLastResort);
  } catch (const std::exception&) {  // no more threads: only the message then
    if (ending.reports) try_write_all(STDERR_FILENO, fmt::format("muster: {}\n", ending.text));
  }
  ::_exit(static_cast<int>(ExitCode::kPeerFailed));
}

}  // namespace muster::distributed
