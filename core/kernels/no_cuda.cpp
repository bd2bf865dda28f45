#include "core/kernels/cuda.h"

namespace muster::kernels {

at::Tensor dropout_cuda(const at::Tensor&, double, const std::vector<int64_t>&, const std::vector<int64_t>&,
                        const DropoutKey&) {
  TORCH_CHECK(false, "muster was built without CUDA");
}

at::Tensor segment_mean_cuda(const at::Tensor&, const std::vector<int64_t>&) {
  TORCH_CHECK(false, "muster was built without CUDA");
}

}  // namespace muster::kernels
