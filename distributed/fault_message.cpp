#include "distributed/fault_message.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <sstream>

namespace muster::distributed {
namespace {

constexpr size_t kMostTold = 8;  // ranks whose place is told one by one

std::string text_of(const FlightEntry& entry) {
  return place(entry.call, entry.communicator) + ", " + describe(entry.call);
}

std::string last_seen(const PeerView& rank) {
  if (!rank.heard) return "never heard of";
  return std::string("last seen in phase ") + name_of(rank.status.phase) +
         (rank.status.completed.number == 0 ? " before its first collective had completed"
                                            : " after " + text_of(rank.status.completed));
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
    return (is_same(rank.status.entered, waiting.entered) ? "it waits in " : "it waits elsewhere, in ") +
           text_of(rank.status.entered);
  return several ? "they are still computing" : "it is still computing";
}

std::string ranks_of(const std::vector<int>& group, const std::vector<PeerView>& ranks) {
  return list_ranks(group) + " of " + std::to_string(ranks.size()) + " (host " + ranks[group[0]].host + ")";
}

}  // namespace

std::string describe_fault(const std::vector<int>& missing, const std::vector<PeerView>& ranks,
                           const RankStatus& waiting, double no_progress) {
  std::ostringstream text;
  if (no_progress > 0) text << "no progress in phase " << name_of(waiting.phase) << " for " << no_progress << " s: ";
  if (missing.empty()) {
    text << (waiting.inside() ? "all ranks run and have come to " + text_of(waiting.entered) +
                                    ", but it does not end; look at the network between them"
                              : "no rank is known to have failed");
  } else if (missing.size() <= kMostTold) {
    for (size_t i = 0; i < missing.size(); ++i) {
      const PeerView& rank = ranks[missing[i]];
      text << (i > 0 ? "; " : "") << ranks_of({missing[i]}, ranks) << (no_progress > 0 ? ": " : " is lost: ")
           << reason(rank, waiting, false) << ", " << last_seen(rank);
    }
  } else {
    std::map<std::pair<std::string, std::string>, std::vector<int>> groups;
    for (const int rank : missing) groups[{ranks[rank].host, reason(ranks[rank], waiting, true)}].push_back(rank);
    for (auto group = groups.begin(); group != groups.end(); ++group)
      text << (group == groups.begin() ? "" : "; ") << ranks_of(group->second, ranks) << ": " << group->first.second;
  }
  text << ".";
  if (std::any_of(missing.begin(), missing.end(), [&](int rank) { return ranks[rank].died; }))
    text << " The system log of that machine (dmesg) says whether it ran out of memory.";
  else if (no_progress > 0)
    text << " MUSTER_COLLECTIVE_TIMEOUT sets how many seconds to wait.";
  return text.str();
}

std::string describe_place(int rank, const RankStatus& status) {
  return "Rank " + std::to_string(rank) +
         (status.inside() ? " waits in " + text_of(status.entered) : std::string(" is outside any collective")) +
         ", in phase " + name_of(status.phase) + "; the last that it completed: " +
         (status.completed.number == 0 ? std::string("none") : text_of(status.completed)) + ".";
}

}  // namespace muster::distributed
