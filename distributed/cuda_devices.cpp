#include "distributed/cuda_devices.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "base/error.h"

namespace muster::distributed {
namespace {

std::string explain(cudaError_t status) {
  if (status == cudaErrorInsufficientDriver)
    return "there is no NVIDIA driver, or one too old for CUDA " + std::to_string(CUDART_VERSION / 1000);
  return cudaGetErrorString(status);
}

std::string hex(const cudaUUID_t& uuid) {
  std::string text;
  char digits[3];
  for (const char byte : uuid.bytes) {
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(byte));
    text += digits;
  }
  return text;
}

}  // namespace

VisibleGpus visible_gpus() {
  VisibleGpus visible;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();  // an error that was reported must not show up again at the next CUDA call
    visible.why_none = status == cudaSuccess ? "no GPU is visible" : explain(status);
    if (const char* chosen = std::getenv("CUDA_VISIBLE_DEVICES"))
      visible.why_none += "; CUDA_VISIBLE_DEVICES is \"" + std::string(chosen) + "\"";
    return visible;
  }
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    if (const cudaError_t failed = cudaGetDeviceProperties(&properties, index); failed != cudaSuccess) {
      cudaGetLastError();
      return {{}, "GPU " + std::to_string(index) + " does not answer: " + explain(failed)};
    }
    char pci[32];
    std::snprintf(pci, sizeof pci, "%04x:%02x:%02x.0", properties.pciDomainID, properties.pciBusID,
                  properties.pciDeviceID);
    visible.gpus.push_back({hex(properties.uuid), properties.name, pci});
  }
  return visible;
}

void use_gpu(int index) {
  const cudaError_t status = cudaSetDevice(index);
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw Error(ExitCode::kUsage,
              "GPU " + std::to_string(index) + " cannot be used: " + explain(status) +
                  " (nvidia-smi shows who uses it, and whether its compute mode lets several processes share it)");
}

}  // namespace muster::distributed
