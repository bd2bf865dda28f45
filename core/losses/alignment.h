#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace muster::losses {

// MIAR's alignment loss: symmetric InfoNCE between every two modalities over the whole batch, averaged over the pairs.
// embeddings: per modality, unit rows [N, dim]; presence [N, modalities] bool. A pair counts only samples that have both modalities,
// as rows, as columns and in the divisor; a pair without any contributes 0. Two or more modalities. Returns a scalar.
at::Tensor alignment_loss(const std::vector<at::Tensor>& embeddings, const at::Tensor& presence, double temperature);

}  // namespace muster::losses
