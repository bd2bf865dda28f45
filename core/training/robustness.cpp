#include "core/training/robustness.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/text.h"
#include "core/data/perturbed.h"

namespace muster::training {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

// Place in the experiment's list, or -1.
int64_t place_of(const DataSource& source, const std::string& modality) {
  const auto& names = source.shape.modalities;
  const auto found = std::find(names.begin(), names.end(), modality);
  return found == names.end() ? -1 : found - names.begin();
}

// Those of `samples` that still have a modality which the model sees.
std::vector<int64_t> with_any_modality(const DataSource& source, const data::DatasetIndex& index,
                                       const std::vector<int64_t>& samples) {
  std::vector<int64_t> kept;
  std::copy_if(samples.begin(), samples.end(), std::back_inserter(kept), [&](int64_t sample) {
    for (size_t m = 0; m < source.modalities.size(); ++m)
      if (source.limits[m].of(index.modalities[static_cast<size_t>(source.modalities[m])].length(sample)) > 0)
        return true;
    return false;
  });
  return kept;
}

void take_scores(const Evaluation& evaluation, PerturbedScores& scores) {
  scores.samples = static_cast<int64_t>(evaluation.predictions.samples.size());
  scores.loss = evaluation.loss;
  scores.metrics = evaluation.metrics;
}

void evaluate_at(Predictor& predictor, const data::Perturbation& perturbation, const Evaluation& plain,
                 PerturbedScores& scores) {
  const data::PerturbedDataset dataset(predictor.source().dataset, perturbation);
  const auto samples = with_any_modality(predictor.source(), dataset.index(), predictor.samples());
  if (samples.empty()) {
    take_scores({}, scores);
    scores.loss = kUndefined;
    for (const auto& metric : plain.metrics) scores.metrics.emplace_back(metric.first, kUndefined);
  } else {
    take_scores(predictor.evaluate(dataset, samples), scores);
  }
  scores.left_out = static_cast<int64_t>(predictor.samples().size() - samples.size());
}

}  // namespace

void require_perturbable(const Predictor& predictor, const std::vector<PerturbationCurve>& curves) {
  const DataSource& source = predictor.source();
  const models::ModelSpec& model = models::spec_of(predictor.experiment());
  std::vector<std::string> problems;
  for (const auto& curve : curves) {
    const int64_t place = place_of(source, curve.modality);
    if (place < 0)
      problems.push_back(fmt::format("--{} {}: the run uses no such modality; it uses {}", name_of(curve.kind),
                                     in_quotes(curve.modality), join(source.shape.modalities)));
    else if (curve.kind == PerturbationKind::kDrop && model.modalities.every_sample_needs_all)
      problems.push_back(
          fmt::format("--drop {}: {} needs every modality of a sample, so none can be dropped; use --noise",
                      curve.modality, model.title));
    else if (curve.kind == PerturbationKind::kNoise &&
             source.shape.kinds[static_cast<size_t>(place)] == data::ModalityKind::kTokens)
      problems.push_back(
          fmt::format("--noise {}: it holds tokens, to which no noise can be added; use --drop", curve.modality));
  }
  if (!problems.empty()) throw Error(ExitCode::kUsage, join(problems, "\n"));
}

std::vector<PerturbedScores> evaluate_perturbed(
    Predictor& predictor, const Evaluation& plain, const std::vector<PerturbationCurve>& curves, uint64_t seeds,
    const std::function<void(const std::string& what, int64_t done, int64_t total)>& progress) {
  const DataSource& source = predictor.source();
  int64_t total = 0;
  for (const auto& curve : curves) total += static_cast<int64_t>(curve.rates.size() * seeds);
  std::vector<PerturbedScores> all;
  for (size_t c = 0; c < curves.size(); ++c) {
    const auto& curve = curves[c];
    const bool drops = curve.kind == PerturbationKind::kDrop;
    const int64_t place = place_of(source, curve.modality);
    data::Perturbation perturbation;
    perturbation.modality = source.modalities[static_cast<size_t>(place)];
    if (!drops && source.shape.kinds[static_cast<size_t>(place)] == data::ModalityKind::kFeatures)
      perturbation.scales = predictor.deviations(place);
    for (const double rate : curve.rates) {
      (drops ? perturbation.drop : perturbation.noise) = rate;
      for (uint64_t seed = 1; seed <= seeds; ++seed) {
        progress(fmt::format("{} {} {:.12g}, seed {}: evaluation", name_of(curve.kind), curve.modality, rate, seed),
                 static_cast<int64_t>(all.size()), total);
        PerturbedScores scores;
        const bool has_chance = rate > 0 && !(drops && rate >= 1);
        if (seed > 1 && !has_chance) {
          scores = all.back();
        } else if (rate == 0) {
          take_scores(plain, scores);
        } else {
          perturbation.seed = seed;
          evaluate_at(predictor, perturbation, plain, scores);
        }
        scores.curve = c;
        scores.rate = rate;
        scores.seed = seed;
        all.push_back(std::move(scores));
      }
    }
  }
  return all;
}

}  // namespace muster::training
