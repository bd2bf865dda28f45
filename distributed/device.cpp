#include "distributed/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "base/host.h"
#include "base/text.h"

namespace muster::distributed {
namespace {

std::string rank_on_host(size_t rank, const RankView& view) { return fmt::format("rank {} on {}", rank, view.host); }

std::vector<std::string> uuids(const RankView& view) {
  std::vector<std::string> list;
  for (const auto& gpu : view.visible.gpus) list.push_back(gpu.uuid);
  return list;
}

// All ranks see a GPU, or none does; anything else is a job that was started incorrectly.
bool use_gpus(const std::vector<RankView>& views, WantedDevice wanted) {
  if (wanted == WantedDevice::kCpu) return false;
  std::string without, with;
  size_t blind = 0;
  for (size_t rank = 0; rank < views.size(); ++rank) {
    if (!views[rank].visible.gpus.empty()) {
      if (with.empty()) with = rank_on_host(rank, views[rank]);
    } else if (++blind <= 8) {
      without += fmt::format("\n  {}: {}", rank_on_host(rank, views[rank]), views[rank].visible.why_none);
    }
  }
  if (blind == 0) return true;
  if (blind > 8) without += fmt::format("\n  and {} more", blind - 8);
  if (blind < views.size())
    throw SharedError(ExitCode::kUsage,
                      fmt::format("these ranks see no GPU, while others ({}) do:{}\nGive every rank a GPU (Slurm: "
                                  "--gpus-per-task=1), or set training.device: CPU",
                                  with, without));
  if (wanted == WantedDevice::kAuto) return false;
  throw SharedError(ExitCode::kUsage, fmt::format("training.device is CUDA, but no rank sees a GPU:{}\nUse "
                                                  "training.device: AUTO or CPU to train without one",
                                                  without));
}

// By the allocation alone: a build that cannot see GPUs would otherwise train on the CPU beside GPUs that someone
// queued for.
void require_enough_allocated(const std::vector<RankView>& views) {
  std::map<std::string, std::pair<size_t, int>> hosts;  // ranks, GPUs
  for (const auto& view : views) {
    auto& [ranks, gpus] = hosts[view.host];
    ++ranks;
    gpus = std::max(gpus, view.allocated);
  }
  for (const auto& [host, counts] : hosts)
    if (counts.second > 0 && counts.first > static_cast<size_t>(counts.second))
      throw SharedError(
          ExitCode::kUsage,
          fmt::format("{} on {}, where Slurm has given this job {}: each rank needs one of its own. Ask "
                      "for as many GPUs as ranks on each node (--gpus-per-node, --ntasks-per-node), set "
                      "training.share_device: true to let ranks share, or training.device: CPU to train "
                      "without",
                      plural(static_cast<int64_t>(counts.first), "rank"), host, plural(counts.second, "GPU")));
}

}  // namespace

std::vector<DeviceBinding> choose_devices(const std::vector<RankView>& views, const DeviceRequest& request) {
  std::vector<DeviceBinding> bindings(views.size());
  for (size_t rank = 0; rank < views.size(); ++rank) bindings[rank].host = views[rank].host;
  if (request.wanted != WantedDevice::kCpu && !request.share) require_enough_allocated(views);
  if (!use_gpus(views, request.wanted)) return bindings;

  std::map<std::vector<std::string>, std::vector<size_t>> ranks_by_gpus;
  for (size_t rank = 0; rank < views.size(); ++rank) ranks_by_gpus[uuids(views[rank])].push_back(rank);
  std::map<std::string, std::vector<size_t>> ranks_by_gpu;
  for (const auto& [gpus, ranks] : ranks_by_gpus) {
    if (ranks.size() > gpus.size() && !request.share)
      throw SharedError(
          ExitCode::kUsage,
          fmt::format("{} on {} ({} is the first) see the same {} ({}): each needs one of its own. Start at most {} "
                      "there, or set training.share_device: true to let ranks share a GPU (slower; to try things out)",
                      plural(static_cast<int64_t>(ranks.size()), "rank"), views[ranks[0]].host,
                      rank_on_host(ranks[0], views[ranks[0]]), plural(static_cast<int64_t>(gpus.size()), "GPU"),
                      views[ranks[0]].visible.gpus[0].name, plural(static_cast<int64_t>(gpus.size()), "rank")));
    for (size_t place = 0; place < ranks.size(); ++place) {
      auto& binding = bindings[ranks[place]];
      const size_t index = place % gpus.size();
      binding.device = c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
      binding.gpu = views[ranks[place]].visible.gpus[index];
      ranks_by_gpu[binding.gpu.uuid].push_back(ranks[place]);
    }
  }
  for (auto& binding : bindings) {
    const auto& ranks = ranks_by_gpu.at(binding.gpu.uuid);
    binding.ranks_on_gpu = static_cast<int>(ranks.size());
    if (ranks.size() > 1 && !request.share)
      throw SharedError(ExitCode::kUsage,
                        fmt::format("{} and {} would use the same GPU ({}, UUID {}): the lists of GPUs that ranks see "
                                    "(CUDA_VISIBLE_DEVICES) overlap. Let all ranks of a machine see the same GPUs, or "
                                    "each its own",
                                    rank_on_host(ranks[0], views[ranks[0]]), rank_on_host(ranks[1], views[ranks[1]]),
                                    binding.gpu.name, binding.gpu.uuid));
  }
  return bindings;
}

DeviceBinding bind_device(Communicator& communicator, const DeviceRequest& request) {
  RankView own;
  own.host = host_name();
  if (request.wanted != WantedDevice::kCpu) own.visible = visible_gpus();
  if (const char* allocated = std::getenv("SLURM_GPUS_ON_NODE")) own.allocated = std::atoi(allocated);

  nlohmann::json gpus = nlohmann::json::array();
  for (const auto& gpu : own.visible.gpus) gpus.push_back({gpu.uuid, gpu.name, gpu.pci});
  const nlohmann::json description = {own.host, own.visible.why_none, own.allocated, gpus};
  std::vector<RankView> views;
  for (const auto& text : communicator.all_gather_bytes(description.dump())) {
    const auto json = nlohmann::json::parse(text);
    views.push_back({json[0], {{}, json[1]}, json[2]});
    for (const auto& gpu : json[3]) views.back().visible.gpus.push_back({gpu[0], gpu[1], gpu[2]});
  }
  const DeviceBinding binding = choose_devices(views, request)[communicator.rank()];
  if (binding.device.is_cpu()) return binding;
  // NCCL refuses two ranks with the same host and GPU; with different host ids they communicate over sockets.
  if (binding.ranks_on_gpu > 1)
    setenv("NCCL_HOSTID", fmt::format("{}-rank-{}", binding.host, communicator.rank()).c_str(), 1);
  run_on_all_ranks(communicator, [&] { use_gpu(binding.device.index()); });
  return binding;
}

}  // namespace muster::distributed
