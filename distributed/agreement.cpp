#include "distributed/agreement.h"

#include <unistd.h>

#include <algorithm>

#include "base/host.h"
#include "distributed/collective_call.h"

namespace muster::distributed {
namespace {

constexpr size_t kLongestSent = 4096;  // of longer values a checksum is compared
constexpr size_t kLongestShown = 120;

std::string compared_form(const std::string& value) {
  if (value.size() <= kLongestSent) return value;
  std::vector<int64_t> words(value.begin(), value.end());
  return value.substr(0, kLongestSent) + "#" + std::to_string(value.size()) + "#" + std::to_string(hash_of(words));
}

std::string shown(const std::string& value) {
  const auto printable = [](char c) { return c >= ' ' && c <= '~'; };
  if (value.size() > kLongestShown || !std::all_of(value.begin(), value.end(), printable)) return "another value";
  return "\"" + value + "\"";
}

}  // namespace

void require_same(Communicator& communicator, const std::string& what, const std::string& value,
                  const std::string& advice, ExitCode code) {
  const auto all = communicator.all_gather_bytes(host_name() + '\0' + compared_form(value));
  struct Party {
    std::string value;
    std::vector<int> ranks;
    std::vector<std::string> hosts;
  };
  std::vector<Party> parties;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const size_t end = all[rank].find('\0');
    const std::string theirs = all[rank].substr(end + 1), host_of_rank = all[rank].substr(0, end);
    auto party = std::find_if(parties.begin(), parties.end(), [&](const Party& each) { return each.value == theirs; });
    if (party == parties.end()) party = parties.insert(party, Party{theirs, {}, {}});
    party->ranks.push_back(static_cast<int>(rank));
    if (std::find(party->hosts.begin(), party->hosts.end(), host_of_rank) == party->hosts.end())
      party->hosts.push_back(host_of_rank);
  }
  if (parties.size() == 1) return;
  // max_element gives the first of equals: at a tie the party of rank 0 comes before all others.
  const auto majority = std::max_element(
      parties.begin(), parties.end(), [](const Party& a, const Party& b) { return a.ranks.size() < b.ranks.size(); });
  std::string message = what + " differs between ranks: ";
  for (auto party = parties.begin(); party != parties.end(); ++party) {
    if (party == majority) continue;
    message += list_ranks(party->ranks) + " (";
    for (size_t i = 0; i < party->hosts.size() && i < 4; ++i) message += (i == 0 ? "host " : ", ") + party->hosts[i];
    message += (party->hosts.size() > 4   ? ", ...) has "
                : party->ranks.size() > 1 ? ") have "
                                          : ") has ") +
               shown(party->value) + ", ";
  }
  message += "while " + list_ranks(majority->ranks) + (majority->ranks.size() > 1 ? " have " : " has ") +
             shown(majority->value);
  throw SharedError(code, message + ". " + advice);
}

}  // namespace muster::distributed
