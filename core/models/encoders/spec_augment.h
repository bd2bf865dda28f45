#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "core/kernels/dropout.h"
#include "core/models/encoders/transformer.h"

// SpecAugment on hidden states (Park et al., 2019; Baevski et al., 2020): spans of time and of features are masked,
// with the distribution of transformers' _compute_mask_indices for a sample alone. A sample's spans are keyed by its
// place in the global batch, so they depend on nothing else.
namespace muster::models {

struct MaskedSpans {
  double share = 0;    // of the positions, if no spans overlapped
  int64_t length = 1;  // of a span
  int64_t least = 0;   // spans
};

// First positions of the spans of one sample, all different; they may overlap. None where a span does not fit.
std::vector<int64_t> span_starts(const MaskedSpans& spans, int64_t positions, const kernels::DropoutKey& key,
                                 int64_t batch_index);

// Masked rows of x [rows, dim] become `embedding` [dim].
at::Tensor mask_times(const at::Tensor& x, const at::Tensor& embedding, const MaskedSpans& spans,
                      const SampleRows& rows, const kernels::DropoutKey& key);

// Masked columns of each sample's rows become 0.
at::Tensor mask_features(const at::Tensor& x, const MaskedSpans& spans, const SampleRows& rows,
                         const kernels::DropoutKey& key);

}  // namespace muster::models
