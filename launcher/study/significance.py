"""Paired comparisons of a study's variants with its base (SciPy).

Reads {"level", "families": [[{"base": [...], "variant": [...]}, ...], ...]} from standard input: a family is the comparisons that one metric makes. A pair of which one number is null does not count. Writes the same lists with, for each
comparison, {"n", "difference", "low", "high", "p", "p_holm"}:
  difference  mean of variant - base over the pairs, which are at the same places of both lists
  low, high   bootstrap interval (percentiles of 9,999 resamples) of that mean, of confidence 1 - level
  p           Wilcoxon signed-rank test, two-sided, as scipy.stats.wilcoxon chooses its method
  p_holm      p corrected for the number of comparisons in the family (Holm, 1979)
Fewer than two pairs: only n and the difference.
"""

import json
import sys
import warnings

import numpy as np
from scipy import stats


def compare(base, variant, level):
    # Metrics of few samples differ by a few values only: rounding must not make equal differences unequal.
    differences = np.round([own - other for own, other in zip(variant, base) if own is not None and other is not None], 12)
    result = {"n": len(differences), "difference": None, "low": None, "high": None, "p": None, "p_holm": None}
    if len(differences) > 0:
        result["difference"] = float(differences.mean())
    if len(differences) < 2:
        return result
    if not differences.any():  # there is nothing to test
        return {**result, "low": 0.0, "high": 0.0, "p": 1.0}
    interval = stats.bootstrap((differences,), np.mean, confidence_level=1 - level, n_resamples=9999, method="percentile", rng=0).confidence_interval
    return {**result, "low": float(interval.low), "high": float(interval.high), "p": float(stats.wilcoxon(differences).pvalue)}


def correct(family):
    tested = sorted((c for c in family if c["p"] is not None), key=lambda c: c["p"])
    corrected = 0.0
    for place, comparison in enumerate(tested):
        corrected = max(corrected, min(1.0, comparison["p"] * (len(tested) - place)))
        comparison["p_holm"] = corrected


request = json.load(sys.stdin)
warnings.simplefilter("ignore")  # the tables say when there are few samples
families = [[compare(c["base"], c["variant"], request["level"]) for c in family] for family in request["families"]]
for family in families:
    correct(family)
json.dump(families, sys.stdout)
