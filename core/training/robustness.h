#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/training/inference.h"

// How a model's scores fall when a modality is missing for some of the samples, or noisy.
namespace muster::training {

enum class PerturbationKind { kDrop, kNoise };
inline const char* name_of(PerturbationKind kind) { return kind == PerturbationKind::kDrop ? "drop" : "noise"; }

// One modality, perturbed at several rates: shares of the samples that lose it (0 to 1), or standard deviations of the
// noise, as multiples of the features' own (waveforms: of each sample's RMS).
struct PerturbationCurve {
  PerturbationKind kind;
  std::string modality;
  std::vector<double> rates;
};

// Scores at one rate, with the random numbers of one seed.
struct PerturbedScores {
  size_t curve = 0;
  double rate = 0;
  uint64_t seed = 1;
  int64_t samples = 0;   // that were evaluated
  int64_t left_out = 0;  // that have lost the only modality they had
  double loss = 0;       // NaN, as the metrics, where no sample is left
  metrics::Metrics metrics;
};

// Throws Error(kUsage) that says everything about `curves` that the predictor's model and data rule out.
void require_perturbable(const Predictor& predictor, const std::vector<PerturbationCurve>& curves);

// Evaluates every curve at every rate with the seeds 1 .. `seeds`, in this order. plain: what predictor.evaluate()
// gave, which is also what rate 0 gives. `progress` gets what is evaluated next, and how many of all points are done.
// The same on every rank. Collective.
std::vector<PerturbedScores> evaluate_perturbed(
    Predictor& predictor, const Evaluation& plain, const std::vector<PerturbationCurve>& curves, uint64_t seeds,
    const std::function<void(const std::string& what, int64_t done, int64_t total)>& progress);

}  // namespace muster::training
