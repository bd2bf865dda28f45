#pragma once

#include <vector>

#include "core/metrics/metrics.h"

namespace muster::metrics {

// The metrics of MMSA (metricsTop.py, __eval_mosi_regression = __eval_mosei_regression), in float64 and unrounded:
//   Has0_acc_2, Has0_F1_score   two classes, x >= 0 against x < 0, all samples
//   Non0_acc_2, Non0_F1_score   two classes, x > 0 against x <= 0, samples whose label is not 0; NaN if there are none
//   Mult_acc_5, Mult_acc_7      accuracy after clipping both to [-2, 2], [-3, 3] and rounding halves to even
//   MAE                         bit-equal to numpy's np.mean(np.abs(predictions - labels)) on float64
//   Corr                        Pearson's r; NaN if either side is constant or there is only one sample
// F1 is scikit-learn's f1_score(labels, predictions, average="weighted", zero_division=0): per class, weighted by its
// number of labels. For a constant side numpy's corrcoef gives NaN or, when the mean is not exact, rounding noise: here
// it is always NaN.
// A NaN or infinite prediction is wrong in every accuracy as in numpy and makes MAE and Corr non-finite. No samples:
// all NaN. Throws std::invalid_argument when the sizes differ.
Metrics regression_metrics(const std::vector<double>& predictions, const std::vector<double>& labels);

}  // namespace muster::metrics
