#pragma once

#include <set>
#include <string>
#include <vector>

#include "core/metrics/metrics.h"
#include "launcher/study/study_directory.h"

namespace muster::launcher {

// One per seed or fold; NaN where there is none.
using Values = std::vector<double>;

struct VariantResults {
  std::vector<Values> pooled;              // [metric][seed]: over the test samples of all folds together
  std::vector<std::vector<Values>> folds;  // [metric][fold][seed]; one fold where the study has none
  Values validation;                       // [seed]: of the first metric, mean over folds
  std::vector<Values> samples;             // [fold][seed]: of the test split
  int64_t dropped = -1;                    // samples of the dataset that lack a modality; -1: not known
  int trained = 0;                         // runs
};

// A variant compared with the base, for one metric. NaN: not known.
struct Comparison {
  int n = 0;  // pairs
  double difference, low, high, p, p_holm;
};

struct StudyResults {
  std::vector<std::string> metrics;
  int folds = 0;                                     // 0: the study has none
  std::vector<VariantResults> variants;              // as StudySpec::variants
  VariantResults trivial;                            // the base's trivial predictions; trained 0: they are not known
  std::vector<std::vector<Comparison>> comparisons;  // [metric][variant - 1]
  int best = -1;                                     // the variant that is best by select_on; -1: no whole seed
  std::set<std::string> model_notes;                 // to be printed with the tables
};

// Reads what is trained and compares it (SciPy, in a Python process). Throws Error(kBadData) when a file cannot be
// understood or files contradict each other, Error(kBadConfig) when a metric is not there or SciPy cannot run.
StudyResults read_results(const StudyDirectory& directory);

// Mean and standard deviation (n - 1) of the values that are there; std is NaN below two.
struct Spread {
  int n;
  double mean, std;
};
Spread spread(const Values& values);

// [seed]: test samples of all folds together; NaN where a fold is missing.
Values pooled_samples(const VariantResults& results);

}  // namespace muster::launcher
