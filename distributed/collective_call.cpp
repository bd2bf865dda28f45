#include "distributed/collective_call.h"

#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <tuple>

#include "base/error.h"
#include "base/text.h"

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

std::vector<int> in_job(const std::vector<int>& members, const RankNames& names) {
  std::vector<int> ranks;
  for (const int member : members) ranks.push_back(names.ranks[member]);
  return ranks;
}

std::string place(const CollectiveCall& call, const RankNames& names) {
  return fmt::format("{} ({} ranks)", place(call, names.communicator), names.ranks.size());
}

double read_timeout() {
  const char* text = std::getenv("MUSTER_COLLECTIVE_TIMEOUT");
  if (!text) return 0;
  const auto value = parse_real(text);
  if (!value || !(*value > 0))
    throw Error(
        ExitCode::kUsage,
        fmt::format("MUSTER_COLLECTIVE_TIMEOUT is \"{}\": it must be a number of seconds above 0, such as 1800.",
                    text));
  return *value;
}

}  // namespace

CollectiveLabel::CollectiveLabel(const char* label) : previous_(current_label) { current_label = label; }
CollectiveLabel::~CollectiveLabel() { current_label = previous_; }
const char* CollectiveLabel::current() { return current_label; }

const char* name_of(Collective kind) {
  static constexpr const char* kNames[] = {"all_reduce_sum",   "all_gather_rows", "all_to_all_rows",   "broadcast",
                                           "all_gather_bytes", "split",           "the end of the job"};
  const auto index = static_cast<size_t>(kind);
  return index < std::size(kNames) ? kNames[index] : "an unknown collective";
}

RankNames world_names(int size) {
  RankNames names{"world", std::vector<int>(size)};
  std::iota(names.ranks.begin(), names.ranks.end(), 0);
  return names;
}

std::string place(const CollectiveCall& call, const std::string& communicator) {
  return fmt::format("collective {} of {}", call.sequence, communicator);
}

std::string describe(const CollectiveCall& call) {
  if (call.kind == Collective::kEnd) return name_of(call.kind);
  std::string text = fmt::format("{}(", name_of(call.kind));
  if (call.dtype >= 0) {
    const bool rows = call.kind == Collective::kAllGatherRows || call.kind == Collective::kAllToAllRows;
    const std::vector<int64_t> sizes(call.shape, call.shape + std::clamp(call.dims, 0, 4));
    text += fmt::format("{}{} [{}{}]", c10::getDtypeNames(static_cast<at::ScalarType>(call.dtype)).first,
                        rows ? " rows of" : "", fmt::join(sizes, ", "), call.dims > 4 ? ", ..." : "");
    if (rows) text += fmt::format(", {} here", call.own);
    if (call.device > 0) text += " on " + c10::DeviceTypeName(static_cast<at::DeviceType>(call.device), true);
    if (call.root >= 0) text += fmt::format(", root {}", call.root);
  }
  return text + (call.label[0] ? fmt::format(") for {}", call.label) : ")");
}

std::string list_ranks(std::vector<int> ranks) {
  std::sort(ranks.begin(), ranks.end());
  std::vector<std::string> parts;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    if (end - i < 3) end = i + 1;
    parts.push_back(end - i < 3 ? fmt::format("{}", ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[end - 1]));
    i = end;
  }
  if (parts.size() < 2) return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", join(parts));
  const std::string last = parts.back();
  parts.pop_back();
  return fmt::format("ranks {} and {}", join(parts), last);
}

uint64_t hash_of(const std::vector<int64_t>& numbers) {
  uint64_t hash = numbers.size();
  for (const int64_t number : numbers) hash = mix(hash ^ static_cast<uint64_t>(number));
  return hash;
}

uint64_t hash_of_transfer(int from, int to, int64_t rows) {
  return mix(mix(static_cast<uint64_t>(from) << 32 | static_cast<uint32_t>(to)) ^ static_cast<uint64_t>(rows));
}

std::vector<std::vector<int>> groups_of_same(int count, const std::function<bool(int, int)>& same) {
  std::vector<std::vector<int>> groups;
  for (int rank = 0; rank < count; ++rank) {
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& each) { return same(each[0], rank); });
    if (group == groups.end()) group = groups.emplace(group);
    group->push_back(rank);
  }
  // max_element finds the first of equals: at a tie the group of the lowest rank.
  const auto majority =
      std::max_element(groups.begin(), groups.end(), [](const auto& a, const auto& b) { return a.size() < b.size(); });
  if (majority != groups.end()) std::rotate(majority, majority + 1, groups.end());
  return groups;
}

std::string contrast(const std::vector<std::vector<int>>& groups,
                     const std::function<std::string(const std::vector<int>&, bool)>& clause) {
  std::vector<std::string> parts;
  for (const auto& group : groups) parts.push_back(clause(group, &group == &groups.back()));
  parts.back() = fmt::format("while {}", parts.back());
  return join(parts);
}

std::string disagreement(const std::vector<CollectiveCall>& calls, const RankNames& names) {
  const auto groups = groups_of_same(static_cast<int>(calls.size()),
                                     [&](int a, int b) { return key_of(calls[a]) == key_of(calls[b]); });
  if (groups.size() == 1) return "";
  const CollectiveCall& common = calls[groups.back()[0]];
  const std::string differences = contrast(groups, [&](const std::vector<int>& group, bool is_majority) {
    const CollectiveCall& call = calls[group[0]];
    const bool alike = !is_majority && describe(call) == describe(common);
    return fmt::format("{} called {}{}{}", list_ranks(in_job(group, names)), describe(call),
                       call.sequence == common.sequence ? "" : fmt::format(" as its number {}", call.sequence),
                       alike ? " with another list of row counts or other sizes" : "");
  });
  return fmt::format(
      "Ranks disagree about {}: {}. All ranks must make the same calls in the same order with matching sizes: a rank "
      "has left the common path.",
      place(common, names), differences);
}

std::string misfit(const CollectiveCall& call, const std::vector<std::vector<int64_t>>& sends,
                   const std::vector<std::vector<int64_t>>& receives, const RankNames& names) {
  std::vector<std::string> pairs;
  for (size_t from = 0; from < sends.size(); ++from)
    for (size_t to = 0; to < receives.size(); ++to)
      if (sends[from][to] != receives[to][from])
        pairs.push_back(fmt::format("rank {} sends {} rows to rank {}, which expects {}", names.ranks[from],
                                    sends[from][to], names.ranks[to], receives[to][from]));
  return fmt::format("Counts do not match in {}, all_to_all_rows: {}.", place(call, names), join(pairs));
}

std::string absence(const CollectiveCall& call, const CollectiveCall& last_completed, const std::vector<int>& missing,
                    double waited, const RankNames& names) {
  const std::string completed = last_completed.sequence == 0
                                    ? "none"
                                    : fmt::format("{}, number {}", describe(last_completed), last_completed.sequence);
  return fmt::format(
      "{} did not reach {}, {}, within {:.6g} s. The last collective that all completed: {}. The log of a rank that is "
      "stuck or far behind shows where it is; MUSTER_COLLECTIVE_TIMEOUT sets how many seconds to wait.",
      list_ranks(in_job(missing, names)), place(call, names), describe(call), waited, completed);
}

double timeout_from_environment() {
  static const double timeout = read_timeout();
  return timeout;
}

std::chrono::duration<double> collective_deadline() {
  const double from_environment = timeout_from_environment();
  return std::chrono::duration<double>(from_environment > 0 ? from_environment : 1800);
}

}  // namespace muster::distributed
