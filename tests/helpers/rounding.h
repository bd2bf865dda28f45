#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>

namespace muster {

inline double eps_of(at::ScalarType dtype) {
  return dtype == at::kDouble  ? std::numeric_limits<double>::epsilon()
         : dtype == at::kFloat ? std::numeric_limits<float>::epsilon()
                               : 1.0 / 128;  // bfloat16
}

inline double largest_error(const at::Tensor& actual, const at::Tensor& truth) {
  if (truth.numel() == 0) return actual.numel() == 0 ? 0 : std::numeric_limits<double>::infinity();
  return (actual.to(at::kCPU).to(at::kDouble) - truth.to(at::kCPU)).abs().max().item<double>();
}

// The bound for float32 and bfloat16. How far a right result is from the truth depends on the order of its sums, and
// with it on the machine: so the bound is measured, on the same inputs and the same machine. `truth` is the float64
// result on the inputs as rounded, `theirs` what PyTorch computes in the dtype of `ours`. Ours may err at most twice as
// much as theirs, and, for where PyTorch happens to err by almost nothing, by 4 eps of the largest element or of
// `unit`, the size of the terms that a result near zero is summed from. A wrong formula errs by thousands of eps.
inline void expect_as_exact_as_pytorch(const at::Tensor& ours, const at::Tensor& theirs, const at::Tensor& truth,
                                       double unit, const std::string& what) {
  ASSERT_EQ(truth.scalar_type(), at::kDouble) << what;
  ASSERT_EQ(theirs.scalar_type(), ours.scalar_type()) << what;
  ASSERT_EQ(ours.sizes(), truth.sizes()) << what;
  if (truth.numel() == 0) return;
  const double size = std::max(unit, truth.abs().max().item<double>());
  const double ours_error = largest_error(ours, truth), theirs_error = largest_error(theirs, truth);
  EXPECT_LE(ours_error, 2 * theirs_error + 4 * eps_of(ours.scalar_type()) * size)
      << what << "; PyTorch's error: " << theirs_error << ", size: " << size;
}

}  // namespace muster
