#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/training/robustness.h"

// `muster evaluate --drop ... --noise ...`: what is asked for, and what is reported.
namespace muster::launcher {

// Of options MODALITY=RATES, each RATES being START:STEP:STOP (both ends included), numbers with commas between them,
// or one number. Rates are sorted, and each counts once. Throws Error(kUsage) that says everything that is wrong: with
// their form, shares outside 0 to 1, negative noise, a modality that is named twice.
std::vector<training::PerturbationCurve> perturbation_curves(const std::vector<std::string>& drops,
                                                             const std::vector<std::string>& noises);

// A table for each curve: a row per rate, a column per metric, mean and (several seeds) standard deviation.
std::string robustness_tables(const std::vector<training::PerturbationCurve>& curves,
                              const std::vector<training::PerturbedScores>& scores);

// perturbation,modality,rate,seed,samples,left_out,loss and every metric: a row for each evaluation. 17 digits; empty:
// undefined.
std::string robustness_csv(const std::vector<training::PerturbationCurve>& curves,
                           const std::vector<training::PerturbedScores>& scores);

// [{"perturbation", "modality", "rate", "mean", "std", "seeds": [{"seed", "samples", "left_out", "loss", "metrics"}]}],
// null for what is undefined.
nlohmann::json robustness_json(const std::vector<training::PerturbationCurve>& curves,
                               const std::vector<training::PerturbedScores>& scores);

// An SVG file. Throws Error(kBadConfig) when Matplotlib cannot make it.
std::string robustness_plot(const std::vector<training::PerturbationCurve>& curves,
                            const std::vector<training::PerturbedScores>& scores);

}  // namespace muster::launcher
