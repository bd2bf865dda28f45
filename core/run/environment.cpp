#include "core/run/environment.h"

#include <H5public.h>
#include <google/protobuf/stubs/common.h>
#include <torch/version.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/host.h"
#include "base/text.h"
#include "distributed/affinity.h"
#include "distributed/nccl.h"

namespace muster::run {
namespace {

using Row = std::array<std::string, 5>;
constexpr size_t kMostSingleRows = 16, kMostRows = 40;

// "cuda:3 NVIDIA H200": the kind and the model, without the number.
std::string without_number(const std::string& device) {
  const size_t colon = device.find(':');
  return colon == std::string::npos
             ? device
             : device.substr(0, colon) + device.substr(std::min(device.find(' ', colon), device.size()));
}

// Ranks of one host that differ in the number of their device, or in which cores they use, only.
struct Group {
  nlohmann::json first;
  std::vector<int> ranks, devices;
  std::set<std::string> cores;

  bool takes(const nlohmann::json& rank) const {
    return rank["host"] == first["host"] && rank["threads"] == first["threads"] &&
           without_number(rank["device"]) == without_number(first["device"]);
  }
  Row row() const {
    std::string device = first["device"];
    if (const size_t colon = device.find(':'); colon != std::string::npos && devices.size() > 1)
      device = device.substr(0, colon + 1) + distributed::cpu_text(devices) +
               device.substr(std::min(device.find(' ', colon), device.size()));
    std::string cores_text;
    size_t shown = 0;
    for (const auto& each : cores) cores_text += ++shown > 4 ? "" : (cores_text.empty() ? "" : " | ") + each;
    if (shown > 4) cores_text += " | ...";
    return {distributed::cpu_text(ranks), first["host"], device, cores_text,
            fmt::format("{}", first["threads"].get<int>())};
  }
};

std::vector<Group> folded(const nlohmann::json& ranks) {
  std::vector<Group> groups;
  for (const auto& rank : ranks) {
    auto group = ranks.size() <= kMostSingleRows
                     ? groups.end()
                     : std::find_if(groups.begin(), groups.end(), [&](const Group& each) { return each.takes(rank); });
    if (group == groups.end()) group = groups.insert(groups.end(), Group{rank, {}, {}, {}});
    group->ranks.push_back(rank["rank"]);
    group->cores.insert(rank["cores"].get<std::string>());
    const std::string device = rank["device"];
    if (const size_t colon = device.find(':'); colon != std::string::npos)
      group->devices.push_back(std::atoi(device.c_str() + colon + 1));
  }
  for (auto& group : groups) {
    std::sort(group.devices.begin(), group.devices.end());
    group.devices.erase(std::unique(group.devices.begin(), group.devices.end()), group.devices.end());
  }
  return groups;
}

}  // namespace

nlohmann::json describe_environment(distributed::Communicator& communicator, const std::string& command_line,
                                    const nlohmann::json& rank, const nlohmann::json& job) {
  nlohmann::json own = {{"rank", communicator.rank()}, {"host", host_name()}, {"process", getpid()}};
  own.update(rank);
  nlohmann::json ranks = nlohmann::json::array();
  for (const auto& text : communicator.all_gather_bytes(own.dump())) ranks.push_back(nlohmann::json::parse(text));

  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  nlohmann::json environment = {
      {"started", utc_now()},
      {"command_line", command_line},
      {"muster", {{"version", MUSTER_VERSION}, {"commit", MUSTER_GIT_COMMIT}, {"compiler", __VERSION__}}},
      {"libraries",
       {{"torch", TORCH_VERSION},
        {"mpi", distributed::mpi_library_version()},
        {"nccl", distributed::nccl_version()},
        {"hdf5", fmt::format("{}.{}.{}", major, minor, release)},
        {"protobuf", google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION)}}},
      {"world_size", communicator.size()},
      {"ranks", ranks}};
  environment.update(job);
  return environment;
}

std::string rank_table(const nlohmann::json& ranks) {
  std::vector<Row> rows{{"rank", "host", "device", "cores", "threads"}};
  const auto groups = folded(ranks);
  for (size_t i = 0; i < groups.size() && rows.size() <= kMostRows; ++i) rows.push_back(groups[i].row());
  std::array<size_t, 5> width{};
  for (const auto& row : rows)
    for (size_t column = 0; column < row.size(); ++column) width[column] = std::max(width[column], row[column].size());
  std::string text;
  for (const auto& row : rows) {
    if (!text.empty()) text += "\n";
    for (size_t column = 0; column < row.size(); ++column) text += fmt::format("{:{}}", row[column], width[column] + 2);
    text.erase(text.find_last_not_of(' ') + 1);
  }
  if (groups.size() >= rows.size())
    text += fmt::format("\n... and {} rows more (all are in environment.json)", groups.size() + 1 - rows.size());
  return text;
}

}  // namespace muster::run
