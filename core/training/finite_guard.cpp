#include "core/training/finite_guard.h"

namespace muster::training {

FiniteGuard::FiniteGuard(c10::Device device)
    : first_bad_(at::full({}, -1.0, at::TensorOptions(device).dtype(at::kDouble))) {}

at::Tensor FiniteGuard::check(uint64_t step, const at::Tensor& loss, const at::Tensor& norm) {
  const at::Tensor bad = (loss.isfinite() & norm.isfinite()).logical_not() & first_bad_.lt(0);
  first_bad_ = at::where(bad, at::full_like(first_bad_, static_cast<double>(step)), first_bad_);
  return first_bad_.ge(0).to(at::kFloat);
}

std::optional<uint64_t> FiniteGuard::poll() {
  const double first = first_bad_.item<double>();
  if (first < 0) return std::nullopt;
  first_bad_.fill_(-1.0);
  return static_cast<uint64_t>(first);
}

}  // namespace muster::training
