#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/experiment.pb.h"

namespace muster::batch {

// Modality dropout (data.augment): in each training step every sample loses each of the chosen modalities with a
// certain probability. A sample that would lose all that it has keeps all. Which are lost is a function of (seed, step,
// place in the global batch, modality) alone: the same on every rank and for any number of ranks.
class ModalityDropout {
 public:
  // `modalities`: the experiment's, in its order.
  ModalityDropout(const config::Experiment& experiment, const std::vector<std::string>& modalities);

  // What is left of presence, [N, modalities] bool on the CPU, of step `step`'s global batch.
  at::Tensor left_of(const at::Tensor& presence, uint64_t step) const;

 private:
  double probability_;
  uint64_t seed_;
  std::vector<bool> is_chosen_;  // per modality
};

}  // namespace muster::batch
