#include "core/optim/adamw.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "core/random/function_multiversioning.h"

namespace muster::optim {

AdamW::AdamW(models::Parameters& parameters, const AdamWOptions& options)
    : parameters_(parameters),
      options_(options),
      first_moment_(parameters.zeros_like_values()),
      second_moment_(parameters.zeros_like_values()),
      steps_(at::zeros({}, parameters.values().options().dtype(at::kFloat))) {}

void AdamW::step(double learning_rate, const at::Tensor& skip) {
  const at::NoGradGuard no_gradient;
  steps_.add_(1);
  if (skip.defined()) steps_.sub_(skip);
  for (const auto& group : parameters_.groups()) {
    const auto slice = [&](const at::Tensor& flat) {
      return std::vector<at::Tensor>{flat.narrow(0, group.begin, group.end - group.begin)};
    };
    at::_fused_adamw_(
        slice(parameters_.values()), slice(parameters_.gradients()), slice(first_moment_), slice(second_moment_),
        /*max_exp_avg_sqs=*/{}, /*state_steps=*/{steps_}, learning_rate * group.learning_rate_scale, options_.beta1,
        options_.beta2, group.decayed ? options_.weight_decay : 0, options_.epsilon, /*amsgrad=*/false,
        /*maximize=*/false, /*grad_scale=*/{}, skip.defined() ? std::optional<at::Tensor>(skip) : std::nullopt);
  }
}

namespace {

template <typename Scalar>
__attribute__((always_inline)) inline double squares(const Scalar* values, int64_t count) {
  constexpr int64_t kLanes = 16;
  double lanes[kLanes] = {}, sum = 0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] += static_cast<double>(values[i + lane]) * static_cast<double>(values[i + lane]);
  for (; i < count; ++i) sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  for (const double lane : lanes) sum += lane;
  return sum;
}

// A float's square is exact in double precision, so that the processor's own multiply-add changes nothing.
MUSTER_CPU_VERSIONS
double sum_of_squares(const float* values, int64_t count) { return squares(values, count); }
double sum_of_squares(const double* values, int64_t count) { return squares(values, count); }

}  // namespace

at::Tensor l2_norm(const at::Tensor& flat) {
  if (!flat.device().is_cpu()) return at::linalg_vector_norm(flat, 2, std::nullopt, false, at::kDouble);
  constexpr int64_t kBlock = 1 << 15;
  const int64_t blocks = (flat.numel() + kBlock - 1) / kBlock;
  std::vector<double> sums(blocks, 0);
  AT_DISPATCH_FLOATING_TYPES(flat.scalar_type(), "l2_norm", [&] {
    const scalar_t* data = flat.const_data_ptr<scalar_t>();
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        sums[block] = sum_of_squares(data + block * kBlock, std::min(flat.numel() - block * kBlock, kBlock));
    });
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return at::scalar_tensor(std::sqrt(total), at::kDouble);
}

void clip_gradients(models::Parameters& parameters, const at::Tensor& norm, double max_norm) {
  if (max_norm > 0) parameters.gradients().mul_((max_norm / (norm + 1e-6)).clamp_max(1));
}

}  // namespace muster::optim
