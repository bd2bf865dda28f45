#include "distributed/collective_call.h"

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <sstream>
#include <tuple>

#include "base/error.h"

namespace muster::distributed {
namespace {

thread_local const char* current_label = "";

// What must be the same on every rank.
auto key_of(const CollectiveCall& call) {
  return std::make_tuple(std::string_view(call.label), call.sequence, call.kind, call.dtype, call.device, call.root,
                         call.dims, call.shape_hash, call.counts_hash);
}

// splitmix64's finalizer: a well-mixed 64-bit function of 64 bits.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::string seconds(double value) {
  std::ostringstream text;
  text << value << " s";
  return text.str();
}

std::vector<int> in_job(const std::vector<int>& members, const RankNames& names) {
  std::vector<int> ranks;
  for (const int member : members) ranks.push_back(names.ranks[member]);
  return ranks;
}

std::string place(const CollectiveCall& call, const RankNames& names) {
  return place(call, names.communicator) + " (" + std::to_string(names.ranks.size()) + " ranks)";
}

double read_timeout() {
  const char* text = std::getenv("MUSTER_COLLECTIVE_TIMEOUT");
  if (!text) return 0;
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(value > 0))
    throw Error(ExitCode::kUsage, std::string("MUSTER_COLLECTIVE_TIMEOUT is \"") + text +
                                      "\": it must be a number of seconds above 0, such as 1800.");
  return value;
}

std::atomic<double> deadline_set{0};  // 0: not set

}  // namespace

CollectiveLabel::CollectiveLabel(const char* label) : former_(current_label) { current_label = label; }
CollectiveLabel::~CollectiveLabel() { current_label = former_; }
const char* CollectiveLabel::current() { return current_label; }

const char* name_of(Collective kind) {
  switch (kind) {
    case Collective::kAllReduceSum:
      return "all_reduce_sum";
    case Collective::kAllGatherRows:
      return "all_gather_rows";
    case Collective::kAllToAllRows:
      return "all_to_all_rows";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kAllGatherBytes:
      return "all_gather_bytes";
    case Collective::kSplit:
      return "split";
    case Collective::kEnd:
      return "the end of the job";
  }
  return "an unknown collective";
}

std::string place(const CollectiveCall& call, const std::string& communicator) {
  return "collective " + std::to_string(call.sequence) + " of " + communicator;
}

std::string describe(const CollectiveCall& call) {
  if (call.kind == Collective::kEnd) return name_of(call.kind);
  std::string text = std::string(name_of(call.kind)) + "(";
  if (call.dtype >= 0) {
    const bool rows = call.kind == Collective::kAllGatherRows || call.kind == Collective::kAllToAllRows;
    text += c10::getDtypeNames(static_cast<at::ScalarType>(call.dtype)).first + (rows ? " rows of [" : " [");
    for (int axis = 0; axis < call.dims; ++axis) {
      if (axis > 0) text += ", ";
      if (axis == 4) {
        text += "...";
        break;
      }
      text += std::to_string(call.shape[axis]);
    }
    text += "]";
    if (rows) text += ", " + std::to_string(call.own) + " here";
    if (call.device > 0) text += " on " + c10::DeviceTypeName(static_cast<at::DeviceType>(call.device), true);
    if (call.root >= 0) text += ", root " + std::to_string(call.root);
  }
  return text + ")" + (call.label[0] ? std::string(" for ") + call.label : std::string());
}

std::string list_ranks(std::vector<int> ranks) {
  std::sort(ranks.begin(), ranks.end());
  std::vector<std::string> parts;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    if (end - i < 3) end = i + 1;
    parts.push_back(end - i < 3 ? std::to_string(ranks[i])
                                : std::to_string(ranks[i]) + "-" + std::to_string(ranks[end - 1]));
    i = end;
  }
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < parts.size(); ++i) text += (i == 0 ? "" : i + 1 == parts.size() ? " and " : ", ") + parts[i];
  return text;
}

uint64_t hash_of(const std::vector<int64_t>& numbers) {
  uint64_t hash = numbers.size();
  for (const int64_t number : numbers) hash = mix(hash ^ static_cast<uint64_t>(number));
  return hash;
}

uint64_t hash_of_transfer(int from, int to, int64_t rows) {
  return mix(mix(static_cast<uint64_t>(from) << 32 | static_cast<uint32_t>(to)) ^ static_cast<uint64_t>(rows));
}

std::string disagreement(const std::vector<CollectiveCall>& calls, const RankNames& names) {
  struct Party {
    const CollectiveCall* call;
    std::vector<int> members;
  };
  std::vector<Party> parties;
  for (size_t rank = 0; rank < calls.size(); ++rank) {
    const auto same = [&](const Party& party) { return key_of(*party.call) == key_of(calls[rank]); };
    auto party = std::find_if(parties.begin(), parties.end(), same);
    if (party == parties.end()) party = parties.insert(party, Party{&calls[rank], {}});
    party->members.push_back(static_cast<int>(rank));
  }
  if (parties.size() == 1) return "";
  // max_element gives the first of equals: at a tie the party of the lowest rank.
  const auto majority = std::max_element(parties.begin(), parties.end(), [](const Party& a, const Party& b) {
    return a.members.size() < b.members.size();
  });
  const auto called = [&](const Party& party) {
    return list_ranks(in_job(party.members, names)) + " called " + describe(*party.call);
  };
  std::string message = "Ranks disagree about " + place(*majority->call, names) + ": ";
  for (auto party = parties.begin(); party != parties.end(); ++party) {
    if (party == majority) continue;
    message += called(*party);
    if (party->call->sequence != majority->call->sequence)
      message += " as its number " + std::to_string(party->call->sequence);
    if (describe(*party->call) == describe(*majority->call))
      message += " with another list of row counts or other sizes";
    message += ", ";
  }
  return message + "while " + called(*majority) +
         ". All ranks must make the same calls in the same order with matching sizes: a rank has left the common path.";
}

std::string misfit(const CollectiveCall& call, const std::vector<std::vector<int64_t>>& sends,
                   const std::vector<std::vector<int64_t>>& receives, const RankNames& names) {
  std::string pairs;
  for (size_t from = 0; from < sends.size(); ++from)
    for (size_t to = 0; to < receives.size(); ++to)
      if (sends[from][to] != receives[to][from])
        pairs += (pairs.empty() ? "rank " : ", rank ") + std::to_string(names.ranks[from]) + " sends " +
                 std::to_string(sends[from][to]) + " rows to rank " + std::to_string(names.ranks[to]) +
                 ", which expects " + std::to_string(receives[to][from]);
  return "Counts do not fit in " + place(call, names) + ", all_to_all_rows: " + pairs + ".";
}

std::string absence(const CollectiveCall& call, const CollectiveCall& last_completed, const std::vector<int>& missing,
                    double waited, const RankNames& names) {
  return list_ranks(in_job(missing, names)) + " did not come to " + place(call, names) + ", " + describe(call) +
         ", within " + seconds(waited) + ". The last collective that all completed: " +
         (last_completed.sequence == 0
              ? std::string("none")
              : describe(last_completed) + ", number " + std::to_string(last_completed.sequence)) +
         ". A rank that is stuck or far behind shows where in its log; MUSTER_COLLECTIVE_TIMEOUT sets how many seconds "
         "to wait.";
}

double timeout_from_environment() {
  static const double timeout = read_timeout();
  return timeout;
}

std::chrono::duration<double> collective_deadline() {
  const double set = deadline_set.load(std::memory_order_relaxed);
  if (set > 0) return std::chrono::duration<double>(set);
  const double from_environment = timeout_from_environment();
  return std::chrono::duration<double>(from_environment > 0 ? from_environment : 1800);
}

void set_collective_deadline(std::chrono::duration<double> deadline) { deadline_set = deadline.count(); }

}  // namespace muster::distributed
