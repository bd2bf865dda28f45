#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/config/stored.h"

namespace muster::run {

// Where a run stands, but for its tensors. Equal on every rank whenever it is saved.
struct TrainingState {
  uint64_t steps_done = 0;  // batches worked on, skipped ones included: what random choices are keyed by
  uint64_t skipped_steps = 0;
  uint64_t skipped_in_a_row = 0;

  bool has_best = false;  // from the first evaluation on
  double best_value = std::numeric_limits<double>::quiet_NaN();
  uint64_t best_step = 0;
  int64_t best_epoch = 0;
  std::string best_fingerprint;
  uint32_t evaluations_without_improvement = 0;
  uint64_t validated_step = 0;
  bool stopped_early = false;
  double seconds = 0;  // of all jobs of the run so far
};

// What the numbers of a run rest on besides its experiment.
struct Provenance {
  std::string data_sha256;
  uint32_t results_version = 0;
  std::string muster;    // version and commit
  std::string torch;     // version
  std::string numerics;  // as training::Compute::numerics; empty when not reproducible
};

using config::kResultsVersion;

Provenance provenance_of_this_job(const std::string& data_sha256, const std::string& numerics);

// One sentence for each thing that would change the results of a run that began with `before` and goes on with `now`.
std::vector<std::string> changes_of_results(const Provenance& before, const Provenance& now);

// To and from the bytes in a checkpoint. `source` names it in messages. Throws Error(kBadData).
std::string to_bytes(const TrainingState& state, const Provenance& provenance);
void from_bytes(const std::string& bytes, const std::string& source, TrainingState& state, Provenance& provenance);

}  // namespace muster::run
