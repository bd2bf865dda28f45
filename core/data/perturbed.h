#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace muster::data {

// What is done to one modality. All random numbers are pure functions of (seed, modality's name, sample's place in the
// dataset, and, of noise, row and column), by core/random/philox.h; docs/robustness.md has the formulas.
struct Perturbation {
  int64_t modality = 0;  // position in the index
  // The share of samples that lose the modality, 0 to 1: each for itself. Those that lose it at some share also do at a
  // higher one.
  double drop = 0;
  // Every value gets noise * scale * N(0, 1), not clipped; the normal numbers are the same for every `noise`. Not for
  // tokens.
  double noise = 0;
  std::vector<double> scales;  // of features, one per column; empty for a waveform: its scale is each sample's RMS
  uint64_t seed = 1;
};

// A dataset whose frames of one modality are perturbed, as they are read.
class PerturbedDataset final : public Dataset {
 public:
  PerturbedDataset(std::shared_ptr<const Dataset> base, Perturbation perturbation);

  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override;
  // Of the base and of the perturbation.
  std::string content_hash() const override;
  // That of the base.
  std::string source() const override { return base_->source(); }

 private:
  // Adds noise to the rows [row, row + rows) of a sample.
  void add_noise(int64_t sample, int64_t row, int64_t rows, float* values) const;
  double rms_of(int64_t sample) const;

  std::shared_ptr<const Dataset> base_;
  const Perturbation perturbation_;
  uint32_t name_key_;  // stands for the modality's name in counters
};

}  // namespace muster::data
