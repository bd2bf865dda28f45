#pragma once

#include <vector>

#include "distributed/cuda_devices.h"
#include "launcher/doctor/check.h"
#include "launcher/doctor/machine.h"

namespace muster::launcher::doctor {

// "gpu", "cuda", "cuda_visible". built_with_cuda: of this program; `visible`: what CUDA gives it.
std::vector<Finding> check_gpus(const Machine& machine, bool built_with_cuda, const distributed::VisibleGpus& visible);

}  // namespace muster::launcher::doctor
