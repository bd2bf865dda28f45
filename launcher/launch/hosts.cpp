#include "launcher/launch/hosts.h"

#include <cctype>
#include <fstream>
#include <sstream>

#include "base/error.h"

namespace muster::launcher {
namespace {

constexpr int kMostSlots = 4096;

// 0: not a number from 1 to kMostSlots.
int slots_of(const std::string& text) {
  if (text.empty() || text.size() > 4 || text.find_first_not_of("0123456789") != std::string::npos) return 0;
  const int slots = std::stoi(text);
  return slots <= kMostSlots ? slots : 0;
}

bool is_host_name(const std::string& name) {
  if (name.empty() || name[0] == '-' || name[0] == '.') return false;
  for (const unsigned char c : name)
    if (!std::isalnum(c) && c != '.' && c != '-' && c != '_') return false;
  return true;
}

// where: "--hosts" or "file:line"; part: what was read there.
void add(std::vector<HostSlots>& hosts, const std::string& host, const std::string& slots, const std::string& part,
         const std::string& where) {
  if (!is_host_name(host))
    throw Error(ExitCode::kUsage, where + ": \"" + part + "\": \"" + host + "\" is no host's name");
  const int number = slots_of(slots);
  if (number == 0)
    throw Error(ExitCode::kUsage, where + ": \"" + part + "\": the number of slots must be from 1 to " +
                                      std::to_string(kMostSlots) + ", not \"" + slots + "\"");
  for (const auto& other : hosts)
    if (other.host == host)
      throw Error(ExitCode::kUsage,
                  where + ": the host " + host + " comes twice; give it once, with the sum of its slots");
  hosts.push_back({host, number});
}

}  // namespace

std::vector<HostSlots> parse_hosts(const std::string& text) {
  std::vector<HostSlots> hosts;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    const std::string part = text.substr(start, end - start);
    const size_t colon = part.find(':');
    if (part.empty()) throw Error(ExitCode::kUsage, "--hosts: \"" + text + "\" has an empty part; write a:4,b:4");
    add(hosts, part.substr(0, colon), colon == std::string::npos ? "1" : part.substr(colon + 1), part, "--hosts");
    start = end + 1;
  }
  return hosts;
}

std::vector<HostSlots> read_hostfile(const std::string& path) {
  std::ifstream file(path);
  std::vector<HostSlots> hosts;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string host, slots, more;
    if (!(words >> host)) continue;
    const std::string where = path + ":" + std::to_string(number);
    if (!(words >> slots) || slots.rfind("slots=", 0) != 0 || words >> more)
      throw Error(ExitCode::kUsage, where + ": \"" + line + "\": write a host and its slots, as in: " +
                                        (is_host_name(host) ? host : "node1") + " slots=4");
    add(hosts, host, slots.substr(6), line, where);
  }
  if (file.bad() || !file.eof())
    throw Error(ExitCode::kUsage, "--hostfile: " + path + ": it is missing or cannot be read");
  if (hosts.empty())
    throw Error(ExitCode::kUsage, "--hostfile: " + path + ": it names no host; write lines such as: node1 slots=4");
  return hosts;
}

}  // namespace muster::launcher
