#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace muster::kernels {

// y = x W^T + b, as at::linear: x [rows, in], weight [out, in], bias [out] or none -> [rows, out].
// On a CPU, float32 products of many rows go to oneDNN: its AVX-512 code takes half as long as MKL's choice for
// processors that are not Intel's. With deterministicAlgorithms() all go to MKL, which alone promises the same sums
// wherever arrays lie in memory. No second derivatives of the former.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

// The products that it is made of, without a graph, for nodes that have a backward pass of their own.
// x [rows, in], weight [out, in] -> x W^T [rows, out].
at::Tensor product_of_rows(const at::Tensor& x, const at::Tensor& weight);
// a [rows, m], b [rows, n] -> a^T b [m, n].
at::Tensor product_over_rows(const at::Tensor& a, const at::Tensor& b);

}  // namespace muster::kernels
