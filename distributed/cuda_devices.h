#pragma once

#include <string>
#include <vector>

namespace muster::distributed {

// A GPU as CUDA numbers it: position in visible_gpus() is the device index.
struct Gpu {
  std::string uuid;  // 32 hex digits; two ranks that see the same one on one host see one GPU
  std::string name;
  std::string pci;  // "0000:1b:00.0"; empty: not known
};

struct VisibleGpus {
  std::vector<Gpu> gpus;
  std::string why_none;  // when there is none: "built without CUDA", "no NVIDIA driver", ...; otherwise empty
};

// The GPUs that this process may use. Starts no CUDA context.
VisibleGpus visible_gpus();

// Makes GPU `index` this thread's current device. Throws Error(kUsage) when it cannot be used.
void use_gpu(int index);

}  // namespace muster::distributed
