// Device binding on made-up machines: what Slurm, mpirun and CUDA_VISIBLE_DEVICES make ranks see.
#include "distributed/device.h"

#include <gtest/gtest.h>

namespace muster::distributed {
namespace {

RankView sees(const std::string& host, const std::vector<std::string>& uuids) {
  RankView view{host, {}};
  for (const auto& uuid : uuids) view.visible.gpus.push_back({uuid, "H200", ""});
  if (uuids.empty()) view.visible.why_none = "no driver";
  return view;
}

// `ranks` ranks on `host` that all see the GPUs host-0, host-1, ...
void add(std::vector<RankView>& views, const std::string& host, int ranks, int gpus) {
  std::vector<std::string> uuids;
  for (int g = 0; g < gpus; ++g) uuids.push_back(host + "-" + std::to_string(g));
  for (int r = 0; r < ranks; ++r) views.push_back(sees(host, uuids));
}

std::vector<int> indices(const std::vector<DeviceBinding>& bindings) {
  std::vector<int> result;
  for (const auto& binding : bindings) result.push_back(binding.device.is_cpu() ? -1 : binding.device.index());
  return result;
}

std::vector<std::string> used(const std::vector<DeviceBinding>& bindings) {
  std::vector<std::string> result;
  for (const auto& binding : bindings) result.push_back(binding.gpu.uuid);
  return result;
}

std::string refusal(const std::vector<RankView>& views, const DeviceRequest& request) {
  try {
    choose_devices(views, request);
  } catch (const SharedError& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "not refused";
}

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const auto& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" is missing in:\n" << message;
}

constexpr DeviceRequest kAuto{WantedDevice::kAuto, false}, kCpu{WantedDevice::kCpu, false},
    kCuda{WantedDevice::kCuda, false}, kShare{WantedDevice::kCuda, true};

TEST(Device, AloneWithOneOrManyGpus) {
  for (const int gpus : {1, 2, 8}) {
    std::vector<RankView> views;
    add(views, "a", 1, gpus);
    const auto bindings = choose_devices(views, kAuto);
    EXPECT_EQ(indices(bindings), std::vector<int>{0});
    EXPECT_EQ(bindings[0].ranks_on_gpu, 1);
    EXPECT_EQ(bindings[0].host, "a");
  }
}

TEST(Device, EveryRankSeesAllGpusOfItsMachine) {
  std::vector<RankView> views;
  add(views, "a", 4, 4);
  add(views, "b", 4, 8);
  EXPECT_EQ(indices(choose_devices(views, kCuda)), (std::vector<int>{0, 1, 2, 3, 0, 1, 2, 3}));
}

TEST(Device, RanksNeedNotBeInOrderOfMachines) {
  std::vector<RankView> views;
  for (int i = 0; i < 3; ++i) add(views, "a", 1, 3), add(views, "b", 1, 3);
  EXPECT_EQ(used(choose_devices(views, kCuda)), (std::vector<std::string>{"a-0", "b-0", "a-1", "b-1", "a-2", "b-2"}));
}

TEST(Device, EachRankSeesItsOwn) {
  const std::vector<RankView> views{sees("a", {"x"}), sees("a", {"y"}), sees("b", {"z"})};
  const auto bindings = choose_devices(views, kCuda);
  EXPECT_EQ(indices(bindings), (std::vector<int>{0, 0, 0}));
  EXPECT_EQ(used(bindings), (std::vector<std::string>{"x", "y", "z"}));
}

TEST(Device, PairsOfRanksSeePairsOfGpus) {
  const std::vector<RankView> views{sees("a", {"w", "x"}), sees("a", {"w", "x"}), sees("a", {"y", "z"}),
                                    sees("a", {"y", "z"})};
  EXPECT_EQ(used(choose_devices(views, kCuda)), (std::vector<std::string>{"w", "x", "y", "z"}));
}

TEST(Device, AutoWithoutAnyGpuIsTheCpu) {
  std::vector<RankView> views;
  add(views, "a", 3, 0);
  EXPECT_EQ(indices(choose_devices(views, kAuto)), (std::vector<int>{-1, -1, -1}));
  expect_parts(refusal(views, kCuda), {"training.device is CUDA", "rank 0 on a: no driver", "rank 2", "AUTO"});
}

TEST(Device, CpuIsTheCpuWhateverIsThere) {
  std::vector<RankView> views;
  add(views, "a", 2, 2);
  add(views, "b", 1, 0);
  EXPECT_EQ(indices(choose_devices(views, kCpu)), (std::vector<int>{-1, -1, -1}));
}

TEST(Device, RanksWithoutGpuAmongOthersAreNamed) {
  std::vector<RankView> views;
  add(views, "a", 2, 2);
  add(views, "b", 2, 0);
  for (const auto& request : {kAuto, kCuda, kShare}) {
    const std::string message = refusal(views, request);
    expect_parts(message, {"rank 2 on b: no driver", "rank 3 on b", "rank 0 on a", "training.device: CPU"});
    EXPECT_EQ(message.find("rank 1 "), std::string::npos) << message;
  }
}

TEST(Device, LongListsOfRanksAreCut) {
  std::vector<RankView> views;
  add(views, "a", 1, 1);
  add(views, "b", 20, 0);
  const std::string message = refusal(views, kAuto);
  expect_parts(message, {"rank 8 on b", "and 12 more"});
  EXPECT_EQ(message.find("rank 9 "), std::string::npos) << message;
}

TEST(Device, MoreRanksThanGpusAreRefusedUnlessShared) {
  std::vector<RankView> views;
  add(views, "a", 2, 2);
  add(views, "b", 5, 2);
  expect_parts(refusal(views, kCuda),
               {"5 ranks on b", "2 GPUs", "rank 2 on b", "at most 2 ranks", "training.share_device: true"});
  const auto bindings = choose_devices(views, kShare);
  EXPECT_EQ(indices(bindings), (std::vector<int>{0, 1, 0, 1, 0, 1, 0}));
  std::vector<int> sharers;
  for (const auto& binding : bindings) sharers.push_back(binding.ranks_on_gpu);
  EXPECT_EQ(sharers, (std::vector<int>{1, 1, 3, 2, 3, 2, 3}));
}

TEST(Device, OneVisibleGpuForAllIsRefusedUnlessShared) {
  const std::vector<RankView> views{sees("a", {"x"}), sees("a", {"x"})};
  expect_parts(refusal(views, kAuto), {"2 ranks on a", "1 GPU", "at most 1 rank", "training.share_device"});
  EXPECT_EQ(indices(choose_devices(views, kShare)), (std::vector<int>{0, 0}));
}

TEST(Device, OverlappingListsAreRefusedByUuid) {
  const std::vector<RankView> views{sees("a", {"x", "y"}), sees("a", {"x"})};
  expect_parts(refusal(views, kCuda), {"rank 0 on a", "rank 1 on a", "same GPU", "UUID x", "CUDA_VISIBLE_DEVICES"});
}

TEST(Device, MoreRanksThanSlurmHasGivenGpusAreRefusedWithoutSeeingAny) {
  std::vector<RankView> views;
  add(views, "a", 2, 0);
  add(views, "b", 3, 0);
  for (auto& view : views) view.allocated = 2;
  const std::string text = refusal(views, {});
  EXPECT_NE(text.find("3 ranks on b, where Slurm has given this job 2 GPUs"), std::string::npos) << text;
  EXPECT_EQ(indices(choose_devices(views, {WantedDevice::kCpu, false})), std::vector<int>(5, -1));
  EXPECT_EQ(indices(choose_devices(views, {WantedDevice::kAuto, true})), std::vector<int>(5, -1));
  views.pop_back();
  EXPECT_EQ(indices(choose_devices(views, {})), std::vector<int>(4, -1));
}

TEST(Device, BindingAloneAgreesWithWhatIsVisible) {
  const auto communicator = make_single_process_communicator();
  const auto binding = bind_device(*communicator, kCpu);
  EXPECT_TRUE(binding.device.is_cpu());
  EXPECT_EQ(binding.ranks_on_gpu, 0);
  EXPECT_FALSE(binding.host.empty());
  if (!visible_gpus().gpus.empty()) return;
  EXPECT_THROW(bind_device(*communicator, kCuda), SharedError);
}

}  // namespace
}  // namespace muster::distributed
