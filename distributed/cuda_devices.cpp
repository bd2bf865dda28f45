#include "distributed/cuda_devices.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <cstdlib>

#include "base/error.h"

namespace muster::distributed {
namespace {

std::string explain(cudaError_t status) {
  if (status == cudaErrorInsufficientDriver)
    return fmt::format("there is no NVIDIA driver, or one too old for CUDA {}", CUDART_VERSION / 1000);
  return cudaGetErrorString(status);
}

std::string hex(const cudaUUID_t& uuid) {
  std::string text;
  for (const char byte : uuid.bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

}  // namespace

VisibleGpus visible_gpus() {
  VisibleGpus visible;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();  // clears it: otherwise the next CUDA call would report it again
    visible.why_none = status == cudaSuccess ? "no GPU is visible" : explain(status);
    if (const char* chosen = std::getenv("CUDA_VISIBLE_DEVICES"))
      visible.why_none += fmt::format("; CUDA_VISIBLE_DEVICES is \"{}\"", chosen);
    return visible;
  }
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    if (const cudaError_t failed = cudaGetDeviceProperties(&properties, index); failed != cudaSuccess) {
      cudaGetLastError();
      return {{}, fmt::format("GPU {} does not respond: {}", index, explain(failed))};
    }
    visible.gpus.push_back(
        {hex(properties.uuid), properties.name,
         fmt::format("{:04x}:{:02x}:{:02x}.0", properties.pciDomainID, properties.pciBusID, properties.pciDeviceID)});
  }
  return visible;
}

void use_gpu(int index) {
  const cudaError_t status = cudaSetDevice(index);
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw Error(ExitCode::kUsage,
              fmt::format("GPU {} cannot be used: {} (nvidia-smi shows which processes use it, and whether its compute "
                          "mode lets several share it)",
                          index, explain(status)));
}

}  // namespace muster::distributed
