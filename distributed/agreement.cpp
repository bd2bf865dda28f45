#include "distributed/agreement.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/host.h"
#include "base/text.h"
#include "distributed/collective_call.h"

namespace muster::distributed {
namespace {

constexpr size_t kLongestSent = 4096;  // of longer values a checksum is compared
constexpr size_t kLongestShown = 120;
constexpr size_t kMostHosts = 4;

std::string compared_form(const std::string& value) {
  if (value.size() <= kLongestSent) return value;
  return fmt::format("{}#{}#{}", value.substr(0, kLongestSent), value.size(),
                     hash_of(std::vector<int64_t>(value.begin(), value.end())));
}

std::string shown(const std::string& value) {
  const auto printable = [](char c) { return c >= ' ' && c <= '~'; };
  if (value.size() > kLongestShown || !std::all_of(value.begin(), value.end(), printable)) return "another value";
  return "\"" + value + "\"";
}

}  // namespace

void require_same(Communicator& communicator, const std::string& what, const std::string& value,
                  const std::string& advice, ExitCode code) {
  std::vector<std::string> hosts, values;
  for (const auto& text : communicator.all_gather_bytes(host_name() + '\0' + compared_form(value))) {
    hosts.push_back(text.substr(0, text.find('\0')));
    values.push_back(text.substr(text.find('\0') + 1));
  }
  const auto groups = groups_of_same(communicator.size(), [&](int a, int b) { return values[a] == values[b]; });
  if (groups.size() == 1) return;
  std::string message = what + " differs between ranks: ";
  for (const auto& group : groups) {
    const bool last = &group == &groups.back();
    std::vector<std::string> names;
    for (const int rank : group)
      if (std::find(names.begin(), names.end(), hosts[rank]) == names.end()) names.push_back(hosts[rank]);
    if (names.size() > kMostHosts) names.resize(kMostHosts), names.push_back("...");
    message += fmt::format("{}{}{} {} {}", last ? "while " : "", list_ranks(group),
                           last ? "" : fmt::format(" (host {})", join(names)), group.size() > 1 ? "have" : "has",
                           shown(values[group[0]]));
    if (!last) message += ", ";
  }
  throw SharedError(code, message + ". " + advice);
}

}  // namespace muster::distributed
