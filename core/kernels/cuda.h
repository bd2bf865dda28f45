#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "core/kernels/dropout.h"

// The CUDA versions of what dropout.h and attention.h declare. All work on the current stream and never make the host
// wait. In a build without CUDA no tensor can be on a GPU, so they are never reached (no_cuda.cpp).
namespace muster::kernels {

// One pass of dropout.h's mask over x [rows, dim], contiguous, on a GPU.
at::Tensor dropout_cuda(const at::Tensor& x, double p, const std::vector<int64_t>& offsets,
                        const std::vector<int64_t>& batch_index, const DropoutKey& key);

// values [rows, dim], contiguous, on a GPU -> [samples, dim]. Each element is summed by one thread in row order
// (float64 for float64, otherwise float32): the same bits every time.
at::Tensor segment_mean_cuda(const at::Tensor& values, const std::vector<int64_t>& offsets);

}  // namespace muster::kernels
