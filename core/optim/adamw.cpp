#include "core/optim/adamw.h"

#include <ATen/Parallel.h>

#include <cmath>

namespace muster::optim {

AdamW::AdamW(models::Parameters& parameters, const AdamWOptions& options)
    : parameters_(parameters), options_(options), first_moment_(at::zeros_like(parameters.values())),
      second_moment_(at::zeros_like(parameters.values())),
      steps_(at::zeros({}, parameters.values().options().dtype(at::kFloat))) {}

void AdamW::step(double learning_rate, const at::Tensor& skip) {
  const at::NoGradGuard no_gradient;
  steps_.add_(1);
  if (skip.defined()) steps_.sub_(skip);
  const int64_t decayed = parameters_.decayed();
  const int64_t total = parameters_.values().numel();
  const auto update = [&](int64_t begin, int64_t end, double decay) {
    if (begin == end) return;
    const auto slice = [&](const at::Tensor& flat) { return std::vector<at::Tensor>{flat.narrow(0, begin, end - begin)}; };
    at::_fused_adamw_(slice(parameters_.values()), slice(parameters_.gradients()), slice(first_moment_), slice(second_moment_),
                      /*max_exp_avg_sqs=*/{}, /*state_steps=*/{steps_}, learning_rate, options_.beta1, options_.beta2, decay,
                      options_.epsilon, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{},
                      skip.defined() ? std::optional<at::Tensor>(skip) : std::nullopt);
  };
  update(0, decayed, options_.weight_decay);
  update(decayed, total, 0);
}

at::Tensor l2_norm(const at::Tensor& flat) {
  if (!flat.device().is_cpu()) return at::linalg_vector_norm(flat, 2, std::nullopt, false, at::kDouble);
  constexpr int64_t kBlock = 1 << 15;
  const int64_t blocks = (flat.numel() + kBlock - 1) / kBlock;
  std::vector<double> sums(blocks, 0);
  AT_DISPATCH_FLOATING_TYPES(flat.scalar_type(), "l2_norm", [&] {
    const scalar_t* data = flat.const_data_ptr<scalar_t>();
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        double sum = 0;
        for (int64_t i = block * kBlock; i < std::min(flat.numel(), (block + 1) * kBlock); ++i)
          sum += static_cast<double>(data[i]) * static_cast<double>(data[i]);
        sums[block] = sum;
      }
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
