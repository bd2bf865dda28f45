#include "core/kernels/cuda.h"

#include <ATen/AccumulateType.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <cmath>

#include "core/kernels/upload.h"

namespace muster::kernels {
namespace {

constexpr int kThreads = 256;

// Philox4x32-10: the same words as random::philox4x32.
__device__ uint4 philox(uint32_t key0, uint32_t key1, uint4 counter) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// blockIdx.x is the sample; its threads take groups of four elements, one Philox block each.
// samples_and_rows: offsets [samples + 1], then global rows [samples].
template <typename Scalar, typename Compute>
__global__ void drop_kernel(const Scalar* __restrict__ in, Scalar* __restrict__ out,
                            const int64_t* __restrict__ offsets, const int64_t* __restrict__ batch_index, int64_t dim,
                            uint32_t threshold, Compute scale, uint32_t key0, uint32_t key1, uint32_t site,
                            uint32_t step) {
  const int64_t start = offsets[blockIdx.x] * dim;
  const int64_t elements = offsets[blockIdx.x + 1] * dim - start;
  const uint32_t row = static_cast<uint32_t>(batch_index[blockIdx.x]);
  const int64_t groups = (elements + 3) / 4;
  for (int64_t group = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; group < groups;
       group += int64_t{gridDim.y} * blockDim.x) {
    const uint4 words = philox(key0, key1, make_uint4(static_cast<uint32_t>(group), row, site, step));
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t e = 4 * group + i;
      if (e >= elements) break;
      const Compute kept = static_cast<Compute>(in[start + e]) * scale;
      // A select, not a product with 0: a dropped infinity must become 0, not NaN.
      out[start + e] = (word[i] >> 8) >= threshold ? static_cast<Scalar>(kept) : static_cast<Scalar>(0.0f);
    }
  }
}

template <typename Scalar, typename Compute>
__global__ void segment_mean_kernel(const Scalar* __restrict__ values, Scalar* __restrict__ means,
                                    const int64_t* __restrict__ offsets, int64_t dim) {
  const int64_t begin = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
  for (int64_t column = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; column < dim;
       column += int64_t{gridDim.y} * blockDim.x) {
    Compute sum = 0;
    for (int64_t row = begin; row < end; ++row) sum += static_cast<Compute>(values[row * dim + column]);
    means[blockIdx.x * dim + column] = static_cast<Scalar>(end > begin ? sum / static_cast<Compute>(end - begin) : sum);
  }
}

// gridDim.y, which the hardware bounds; the kernels loop over the rest.
unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::min<int64_t>(std::max<int64_t>((threads + kThreads - 1) / kThreads, 1), 1024));
}

}  // namespace

at::Tensor dropout_cuda(const at::Tensor& x, double p, const std::vector<int64_t>& offsets,
                        const std::vector<int64_t>& batch_index, const DropoutKey& key) {
  at::Tensor out = at::empty_like(x);
  const int64_t samples = static_cast<int64_t>(batch_index.size());
  if (x.numel() == 0) return out;
  const c10::cuda::CUDAGuard guard(x.device());
  std::vector<int64_t> numbers(offsets);
  numbers.insert(numbers.end(), batch_index.begin(), batch_index.end());
  const at::Tensor uploaded = upload(numbers, x.device());
  const int64_t* device_offsets = uploaded.const_data_ptr<int64_t>();
  int64_t longest = 0;
  for (int64_t s = 0; s < samples; ++s) longest = std::max(longest, offsets[s + 1] - offsets[s]);
  const dim3 grid(static_cast<unsigned>(samples), blocks_for((longest * x.size(1) + 3) / 4));
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "dropout", [&] {
    using Compute = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    drop_kernel<scalar_t, Compute><<<grid, kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
        x.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(), device_offsets, device_offsets + samples + 1,
        x.size(1), keep_threshold(p), static_cast<Compute>(1.0 / (1.0 - p)), static_cast<uint32_t>(key.seed),
        static_cast<uint32_t>(key.seed >> 32), key.site, key.step);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

at::Tensor segment_mean_cuda(const at::Tensor& values, const std::vector<int64_t>& offsets) {
  const int64_t samples = static_cast<int64_t>(offsets.size()) - 1, dim = values.size(1);
  at::Tensor means = at::empty({samples, dim}, values.options());
  if (means.numel() == 0) return means;
  const c10::cuda::CUDAGuard guard(values.device());
  const at::Tensor device_offsets = upload(offsets, values.device());
  const dim3 grid(static_cast<unsigned>(samples), blocks_for(dim));
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, values.scalar_type(), "segment_mean", [&] {
    using Compute = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    segment_mean_kernel<scalar_t, Compute><<<grid, kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
        values.const_data_ptr<scalar_t>(), means.mutable_data_ptr<scalar_t>(), device_offsets.const_data_ptr<int64_t>(),
        dim);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return means;
}

}  // namespace muster::kernels
