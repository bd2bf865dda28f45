#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "core/losses/partition.h"

namespace muster::losses {

// An alignment loss: symmetric InfoNCE between every two modalities over the whole batch, averaged over the pairs.
// embeddings: per modality, unit rows [N, dim], on any one device; presence [N, modalities] bool, on the CPU. A pair
// counts only samples that have both modalities, as rows, as columns and in the divisor; a pair without any contributes
// 0. Two or more modalities. Returns a scalar; neither it nor the gradients depend on how `share` deals the work: see
// contrastive.h.
at::Tensor alignment_loss(const std::vector<at::Tensor>& embeddings, const at::Tensor& presence, double temperature,
                          const Partition& share = {});

}  // namespace muster::losses
