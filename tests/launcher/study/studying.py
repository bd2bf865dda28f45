"""Runs studies over a small experiment, and works out from the predictions what their tables must say."""
import csv

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score

import muster_program as mp

HEADER = "# proto-file: launcher/study/study.proto\n# proto-message: muster.launcher.Study\n"
SMALL = mp.SMALL_LATE_FUSION + "data { synthetic { kind: CLASSIFICATION samples: 150 } split { kind: LEAVE_ONE_GROUP_OUT } }\ntraining { epochs: 2 batch_size: 16 }\n"
VARIANTS = """
base: "base.txtpb"
base_label: "whole_model"
variants { name: "no_dropout" label: "without dropout & co" set: "late_fusion.dropout=0" }
variants { name: "slow" set: "optimizer.learning_rate=1e-6" }
"""
TRIVIAL = "trivial baseline"
STUDY = VARIANTS + "seeds: 3\nfolds: 2\nmetrics: \"UA\"\nmetrics: \"WA\"\n"


def write_study(folder, text=STUDY, base=SMALL):
    mp.write_config(folder / "base.txtpb", base)
    (folder / "small.txtpb").write_text(HEADER + text)
    return folder / "small.txtpb"


def run(spec, directory, *more, ranks=1, code=0):
    return mp.muster("study", spec, "--study-dir", directory, *more, ranks=ranks, code=code)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole study, trained by two ranks."""
    folder = tmp_path_factory.mktemp("study")
    directory = folder / "study"
    result = run(write_study(folder), directory, ranks=2)
    return directory, result.stdout, result.stderr


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def predictions(directory, variant, seed, fold=None):
    name = f"seed-{seed}" + ("" if fold is None else f"-fold-{fold}")
    return rows(directory / "cells" / variant / name / "predictions-test.csv")


def ua(samples):
    return balanced_accuracy_score([row["label"] for row in samples], [row["prediction"] for row in samples])


def wa(samples):
    return accuracy_score([row["label"] for row in samples], [row["prediction"] for row in samples])


def holm(values):
    order = np.argsort(values)
    corrected = np.minimum(1, np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1)))
    return dict(zip(order, corrected))


def compared_by_scipy(base, variants):
    """Of values by unit: differences, p of each variant against base, and p corrected."""
    differences = [np.round(np.array(values) - np.array(base), 12) for values in variants]
    p = [stats.wilcoxon(values).pvalue if values.any() else 1.0 for values in differences]
    return differences, p, holm(p)


def compared(directory, metric="UA"):
    """The rows of table.csv that compare with the base."""
    return {row["variant"]: row for row in rows(directory / "table.csv") if row["metric"] == metric and row["fold"] == "pooled" and row["variant"] != TRIVIAL}
