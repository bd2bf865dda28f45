// Device binding on this machine.
#include "distributed/device.h"

#include <algorithm>

#include "distributed/nccl.h"
#include "tests/gpu/gpu.h"

namespace muster::distributed {
namespace {

class Device : public gpu::Gpu {};

TEST_F(Device, AloneTakesTheFirstGpu) {
  const auto communicator = make_single_process_communicator();
  for (const auto wanted : {WantedDevice::kAuto, WantedDevice::kCuda}) {
    const auto binding = bind_device(*communicator, {wanted, false});
    EXPECT_EQ(binding.device, c10::Device(c10::kCUDA, 0));
    EXPECT_EQ(binding.gpu.uuid.size(), 32u);
    EXPECT_EQ(binding.gpu.uuid.find_first_not_of("0123456789abcdef"), std::string::npos);
    EXPECT_FALSE(binding.gpu.name.empty());
    EXPECT_EQ(binding.ranks_on_gpu, 1);
  }
  EXPECT_TRUE(bind_device(*communicator, {WantedDevice::kCpu, false}).device.is_cpu());
}

TEST_F(Device, GpusHaveDifferentUuids) {
  std::vector<std::string> uuids;
  for (const auto& gpu : visible_gpus().gpus) uuids.push_back(gpu.uuid);
  std::sort(uuids.begin(), uuids.end());
  EXPECT_EQ(std::adjacent_find(uuids.begin(), uuids.end()), uuids.end());
}

TEST_F(Device, AGpuThatIsNotThereCannotBeUsed) { EXPECT_THROW(use_gpu(1000), Error); }

TEST_F(Device, NcclIsTheOneItWasBuiltWith) { EXPECT_EQ(nccl_version().substr(0, 2), "2."); }

}  // namespace
}  // namespace muster::distributed
