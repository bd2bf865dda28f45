#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace muster::batch {

// Per-feature mean and standard deviation of one modality's frames, float64 [dim]. What is not standardized (waveforms,
// tokens, features that an encoder of the model has made) has moments without elements, [0].
struct FeatureMoments {
  at::Tensor mean;
  at::Tensor standard_deviation;  // population; 1 where a feature never varies, so that it becomes 0
};

// The part of a fit that one rank computes: sums over the frames of its share of samples, float64 [2, dim] (sum of x -
// pivot and of its square) and the number of frames. Sums of several shares add up.
struct MomentSums {
  at::Tensor sums;
  int64_t frames = 0;
};

// First frame of the first sample that has the modality: subtracting it first keeps the sum of squares exact enough for
// features with a large offset. Throws Error(kBadData) when none of `samples` has the modality.
at::Tensor moment_pivot(const data::Dataset& dataset, int64_t modality, const std::vector<int64_t>& samples);

// Moments of what is not standardized.
FeatureMoments no_moments();

MomentSums sum_moments(const data::Dataset& dataset, int64_t modality, const std::vector<int64_t>& samples,
                       const at::Tensor& pivot);

FeatureMoments finish_moments(const MomentSums& total, const at::Tensor& pivot);

// (value - mean) / standard deviation in double precision, rounded to float32, in place: the bits of the same
// operations one after another on whole tensors, without their copies. values: float32 [frames, dim] on the CPU.
void standardize_rows(const at::Tensor& values, const FeatureMoments& moments);

}  // namespace muster::batch
