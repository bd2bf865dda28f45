#include "core/batch/standardizer.h"

#include <fmt/format.h>

#include "base/error.h"

namespace muster::batch {
namespace {

at::Tensor read_sample(const data::Dataset& dataset, int64_t modality, int64_t sample) {
  const auto& info = dataset.index().modalities[modality];
  at::Tensor frames = at::empty({info.length(sample), info.dim}, at::kFloat);
  if (frames.size(0) > 0)
    dataset.read_frames(modality, info.offsets[sample], frames.size(0), frames.mutable_data_ptr<float>());
  return frames.to(at::kDouble);
}

}  // namespace

at::Tensor moment_pivot(const data::Dataset& dataset, int64_t modality, const std::vector<int64_t>& samples) {
  for (const int64_t sample : samples)
    if (dataset.index().modalities[modality].length(sample) > 0)
      return read_sample(dataset, modality, sample)[0].clone();
  throw Error(ExitCode::kBadData, fmt::format("no training sample has modality '{}'; leave it out of data.modalities",
                                              dataset.index().modalities[modality].name));
}

FeatureMoments no_moments() {
  const at::Tensor none = at::empty({0}, at::kDouble);
  return {none, none};
}

MomentSums sum_moments(const data::Dataset& dataset, int64_t modality, const std::vector<int64_t>& samples,
                       const at::Tensor& pivot) {
  MomentSums total{at::zeros({2, pivot.size(0)}, at::kDouble), 0};
  for (const int64_t sample : samples) {
    const at::Tensor centred = read_sample(dataset, modality, sample) - pivot;
    total.sums[0] += centred.sum(0);
    total.sums[1] += (centred * centred).sum(0);
    total.frames += centred.size(0);
  }
  return total;
}

FeatureMoments finish_moments(const MomentSums& total, const at::Tensor& pivot) {
  const double n = static_cast<double>(total.frames);
  const at::Tensor centred_mean = total.sums[0] / n;
  const at::Tensor variance = (total.sums[1] / n - centred_mean * centred_mean).clamp_min(0);
  const at::Tensor deviation = variance.sqrt();
  // A constant feature's computed deviation is rounding noise, not exactly 0; dividing by it would make noise the
  // signal.
  const at::Tensor floor = 1e-7 * (pivot.abs() + centred_mean.abs());
  return {pivot + centred_mean, at::where(deviation > floor, deviation, at::ones_like(deviation))};
}

void standardize_rows(const at::Tensor& values, const FeatureMoments& moments) {
  const int64_t rows = values.size(0), dim = values.size(1);
  const double* const mean = moments.mean.const_data_ptr<double>();
  const double* const deviation = moments.standard_deviation.const_data_ptr<double>();
  float* row = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < rows; ++i, row += dim)
    for (int64_t d = 0; d < dim; ++d)
      row[d] = static_cast<float>((static_cast<double>(row[d]) - mean[d]) / deviation[d]);
}

}  // namespace muster::batch
