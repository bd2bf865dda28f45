#include "base/error.h"
#include "distributed/cuda_devices.h"

namespace muster::distributed {

VisibleGpus visible_gpus() { return {{}, "muster was built without CUDA"}; }

void use_gpu(int) { throw Error(ExitCode::kInternal, "muster was built without CUDA"); }

}  // namespace muster::distributed
