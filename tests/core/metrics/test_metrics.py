"""muster's metrics against numpy, scikit-learn and MMSA's definitions (metricsTop.py, __eval_mosei_regression)."""
import csv
import json
import math
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

PROBE = [os.path.join(os.environ["MUSTER_BUILD_DIR"], "tests", "probe_plain"), "metrics"]


def probe(rows, *arguments):
    text = "".join(f"{a},{b}\n" for a, b in rows)
    answer = subprocess.run([*PROBE, *map(str, arguments)], input=text, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(answer.stdout)


def regression(predictions, labels):
    return probe(((repr(float(p)), repr(float(t))) for p, t in zip(predictions, labels)), "regression")


def classification(predictions, labels, classes):
    return probe(zip(predictions, labels), "classification", classes)


def multiclass_accuracy(p, t, limit):
    return np.sum(np.round(np.clip(p, -limit, limit)) == np.round(np.clip(t, -limit, limit))) / float(len(t))


def mmsa(p, t):
    """MMSA's metrics without its rounding to four digits. Where MMSA would stop (no label but 0) the value is NaN."""
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    keep = np.array([i for i, e in enumerate(t) if e != 0], dtype=int)
    result = {
        "Has0_acc_2": accuracy_score(p >= 0, t >= 0),
        "Has0_F1_score": f1_score(t >= 0, p >= 0, average="weighted", zero_division=0),
        "Non0_acc_2": math.nan,
        "Non0_F1_score": math.nan,
        "Mult_acc_5": multiclass_accuracy(p, t, 2.0),
        "Mult_acc_7": multiclass_accuracy(p, t, 3.0),
        "MAE": np.mean(np.absolute(p - t)),
        "Corr": math.nan,
    }
    if len(keep):
        result["Non0_acc_2"] = accuracy_score(p[keep] > 0, t[keep] > 0)
        result["Non0_F1_score"] = f1_score(t[keep] > 0, p[keep] > 0, average="weighted", zero_division=0)
    if len(t) > 1 and np.ptp(p) > 0 and np.ptp(t) > 0:
        result["Corr"] = np.corrcoef(p, t)[0][1]
    with np.errstate(invalid="ignore"):
        result["CCC"] = 2 * np.cov(p, t, ddof=0)[0, 1] / (np.var(p) + np.var(t) + (np.mean(p) - np.mean(t)) ** 2)
    result.update(mmsa_sims(p, t))
    return result


def mmsa_sims(p, t):
    """__eval_sims_regression, which takes float32 arrays. Without labels in SIMS's range it has no meaning."""
    names = ["SIMS_acc_2", "SIMS_acc_2_weak", "SIMS_acc_3", "SIMS_acc_5", "SIMS_F1_score", "SIMS_MAE", "SIMS_Corr"]
    if np.abs(t).max() > 1:
        return dict.fromkeys(names, math.nan)

    def classes(x, bounds):
        result = x.copy()
        for i in range(len(bounds) - 1):
            result[np.logical_and(x > np.float32(bounds[i]), x <= np.float32(bounds[i + 1]))] = i
        return result

    p32, t32 = np.clip(p, -1, 1).astype(np.float32), np.clip(t, -1, 1).astype(np.float32)
    two = [classes(x, [-1.01, 0.0, 1.01]) for x in (p32, t32)]
    weak = [classes(x[np.abs(t32) <= np.float32(0.4)], [-1.01, 0.0, 1.01]) for x in (p32, t32)]
    values = [accuracy_score(two[1], two[0]), accuracy_score(weak[1], weak[0]) if len(weak[0]) else math.nan]
    for bounds in ([-1.01, -0.1, 0.1, 1.01], [-1.01, -0.7, -0.1, 0.1, 0.7, 1.01]):
        values.append(np.mean(classes(p32, bounds) == classes(t32, bounds)))
    p, t = np.clip(p, -1, 1), np.clip(t, -1, 1)
    values += [f1_score(two[1], two[0], average="weighted"), np.mean(np.abs(p - t)), math.nan]
    if len(t) > 1 and np.ptp(p) > 0 and np.ptp(t) > 0:
        values[-1] = np.corrcoef(p, t)[0][1]
    return dict(zip(names, values))


def assert_equal(ours, expected):
    assert list(ours) == list(expected)
    for name, value in expected.items():
        if math.isnan(value):
            assert math.isnan(ours[name]), name
        elif name == "MAE" or "acc" in name:
            assert ours[name] == float(value), name  # to the last bit
        else:
            assert ours[name] == pytest.approx(value, rel=0, abs=1e-12), name


# Sizes around every branch of numpy's pairwise summation: fewer than 8, a block of 128, odd halves.
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 127, 128, 129, 135, 136, 137, 255, 257, 686, 1000, 1283, 4659, 16326, 33333]


@pytest.mark.parametrize("size", SIZES)
def test_random_regression(size):
    random = np.random.default_rng(size)
    for scale in (1.0, 1e-3, 40.0):
        labels = np.clip(random.normal(0, 1.6, size), -3, 3)
        predictions = labels * 0.4 + random.normal(0, scale, size)
        assert_equal(regression(predictions, labels), mmsa(predictions, labels))


@pytest.mark.parametrize("seed", range(40))
def test_sims(seed):
    """Labels in steps of 0.1, which lie on the bounds, as float32 and as float64."""
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 90))
    labels = np.round(random.uniform(-1, 1, size), 1)
    labels = labels.astype(np.float32).astype(np.float64) if seed % 2 else labels
    predictions = np.where(random.random(size) < 0.5, random.permutation(labels), random.normal(0, 0.8, size))
    assert_equal(regression(predictions, labels), mmsa(predictions, labels))


@pytest.mark.parametrize("seed", range(40))
def test_adversarial_regression(seed):
    """Values on every edge: exact halves (to even), the clip limits, zeros of both signs, ties, neighbours in float64."""
    random = np.random.default_rng(seed)
    edges = np.array([i / 2 for i in range(-9, 10)] + [0.0, -0.0, 1e-300, -1e-300, 5e-324, -5e-324, 3.0000000000000004])
    edges = np.concatenate([edges, np.nextafter(edges, 9), np.nextafter(edges, -9), np.float64(np.float32(edges / 3))])
    size = int(random.integers(1, 60))
    predictions, labels = random.choice(edges, size), random.choice(edges, size)
    assert_equal(regression(predictions, labels), mmsa(predictions, labels))


def test_adversarial_inputs_reach_the_half_cases():
    """Rounding halves away from zero would give other values here, so the tests above can tell the two apart."""
    p, t = [0.5, 1.5, 2.5, -0.5, -2.5], [0.0, 2.0, 2.0, -0.0, -2.0]
    assert regression(p, t)["Mult_acc_7"] == 1.0
    away = [math.copysign(math.floor(abs(x) + 0.5), x) for x in p]
    assert sum(a == b for a, b in zip(away, t)) == 1


@pytest.mark.parametrize("predictions, labels", [
    ([0.3], [1.0]),
    ([0.0], [0.0]),
    ([-0.0], [0.0]),
    ([0.7, -0.1, 2.0], [0.0, -0.0, 0.0]),
    ([1.0, 1.0, 1.0], [1.0, -2.0, 0.0]),
    ([0.1] * 11, list(range(-5, 6))),
    ([1.0, -2.0, 0.5], [0.1, 0.1, 0.1]),
    ([-1.0, -1.0], [1.0, 2.0]),
    ([2.0, 3.0, 4.0], [2.0, 3.0, 4.0]),
    ([-2.0, -3.0], [2.0, 3.0]),
    ([1e9, -1e9, 3.0], [3.0, -3.0, 7.0]),
    ([3.5, 2.5, -3.5], [3.0, 2.0, -3.0]),
])
def test_degenerate_regression(predictions, labels):
    assert_equal(regression(predictions, labels), mmsa(predictions, labels))


def test_no_samples():
    assert all(math.isnan(value) for value in regression([], []).values())
    assert math.isnan(classification([], [], 3)["WA"])


def test_non_finite_predictions_are_wrong_not_fatal():
    ours = regression([math.nan, math.inf, 1.0], [1.0, 3.0, 1.0])
    p, t = np.array([math.nan, math.inf, 1.0]), np.array([1.0, 3.0, 1.0])
    assert ours["Mult_acc_7"] == multiclass_accuracy(p, t, 3.0)
    assert ours["Has0_acc_2"] == accuracy_score(p >= 0, t >= 0)
    assert math.isnan(ours["MAE"]) and math.isnan(ours["Corr"])


def expected_classification(predictions, labels, classes):
    return {
        "WA": accuracy_score(labels, predictions),
        "UA": recall_score(labels, predictions, average="macro", labels=np.unique(labels), zero_division=0),
        "macro_recall": recall_score(labels, predictions, average="macro", zero_division=0),
        "weighted_F1": f1_score(labels, predictions, average="weighted", zero_division=0),
    }


@pytest.mark.parametrize("seed", range(40))
def test_random_classification(seed):
    """Also with classes that are absent from the labels, from the predictions, or from both."""
    random = np.random.default_rng(seed)
    classes = int(random.integers(1, 8))
    size = int(random.integers(1, 200))
    labels = random.choice(random.permutation(classes)[:random.integers(1, classes + 1)], size)
    predictions = np.where(random.random(size) < 0.5, labels,
                           random.choice(random.permutation(classes)[:random.integers(1, classes + 1)], size))
    ours = classification(predictions, labels, classes)
    expected = expected_classification(predictions, labels, classes)
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=0, abs=1e-12), name
    matrix = confusion_matrix(labels, predictions, labels=list(range(classes)))
    assert ours["confusion"] == matrix.tolist()
    for c in range(classes):
        recall = ours["per_class_recall"][c]
        assert math.isnan(recall) if matrix[c].sum() == 0 else recall == matrix[c, c] / matrix[c].sum()
    if len(np.unique(labels)) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "y_pred contains classes not in y_true": that is the point
            assert ours["UA"] == pytest.approx(balanced_accuracy_score(labels, predictions), rel=0, abs=1e-12)


def test_an_unlabelled_class_does_not_lower_ua():
    predictions, labels = [0, 1, 2, 1], [0, 1, 1, 1]
    assert classification(predictions, labels, 3)["UA"] == pytest.approx((1 + 2 / 3) / 2)
    assert recall_score(labels, predictions, average="macro", zero_division=0) == pytest.approx((1 + 2 / 3) / 3)


def expected_multilabel(predictions, labels):
    """predictions, labels: bool [samples, classes]."""
    accuracies = []
    for p, t in zip(predictions.T, labels.T):
        # Tong et al. 2017: (TP * N / P + TN) / 2N, which needs positives (P) and negatives (N).
        positives, negatives = t.sum(), (~t).sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            accuracies.append(((p & t).sum() * negatives / positives + (~p & ~t).sum()) / (2 * negatives))
    accuracies = np.where(labels.all(0) | ~labels.any(0), math.nan, accuracies)
    f1s = [f1_score(t, p, average="weighted", zero_division=0) for p, t in zip(predictions.T, labels.T)]
    result = {
        "mean_weighted_F1": np.mean(f1s),
        "mean_WA": np.nanmean(accuracies) if np.isfinite(accuracies).any() else math.nan,
        "macro_F1": np.mean([f1_score(t, p, zero_division=0) for p, t in zip(predictions.T, labels.T)]),
        "micro_F1": f1_score(labels.ravel(), predictions.ravel(), zero_division=0),
        "subset_accuracy": accuracy_score(labels, predictions) if labels.shape[1] > 1 else np.mean(labels == predictions),
    }
    for c, (accuracy, f1) in enumerate(zip(accuracies, f1s)):
        result.update({f"WA[{c}]": accuracy, f"weighted_F1[{c}]": f1})
    return result


@pytest.mark.parametrize("seed", range(40))
def test_multilabel(seed):
    random = np.random.default_rng(seed)
    size, classes = int(random.integers(1, 60)), int(random.integers(1, 7))
    labels = random.random((size, classes)) < random.random(classes) ** 2  # some classes are in no sample
    outputs = np.where(labels, 1.0, -1.0) + random.normal(0, 1.5, (size, classes))
    rows = [(repr(float(p)), int(t)) for p, t in zip(outputs.ravel(), labels.ravel())]
    ours, expected = probe(rows, "multilabel", classes), expected_multilabel(outputs > 0, labels)
    assert list(ours) == list(expected)
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=0, abs=1e-12, nan_ok=True), name
    train = random.random((size, classes)) < random.random(classes)
    rows = [("train", int(x)) for x in train.ravel()] + [("eval", int(x)) for x in labels.ravel()]
    expected = expected_multilabel(np.tile(2 * train.sum(0) > size, (size, 1)), labels)
    for name, value in probe(rows, "multilabel-baseline", classes).items():
        assert value == pytest.approx(expected[name], rel=0, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("seed", range(10))
def test_floors(seed):
    random = np.random.default_rng(seed)
    train = np.round(random.normal(0.2, 1.6, int(random.integers(1, 50))), 1)
    labels = np.round(random.normal(0, 1.6, 30), 1)
    rows = [("train", repr(float(x))) for x in train] + [("eval", repr(float(x))) for x in labels]
    assert_equal(probe(rows, "regression-baseline"), mmsa(np.full(30, np.median(train)), labels))

    train, labels = random.integers(0, 4, int(random.integers(1, 20))), random.integers(0, 4, 30)
    majority = np.argmax(np.bincount(train, minlength=4))
    ours = probe([("train", x) for x in train] + [("eval", x) for x in labels], "classification-baseline", 4)
    for name, value in expected_classification(np.full(30, majority), labels, 4).items():
        assert ours[name] == pytest.approx(value, rel=0, abs=1e-12), name


def documented_metrics(rows, folder):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "docs", "metrics.md"), encoding="utf-8") as page:
        (block,) = re.findall(r"```python\n(.*?)```", page.read(), re.DOTALL)
    (folder / "recompute.py").write_text(block)
    with open(folder / "predictions-test.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    answer = subprocess.run([sys.executable, folder / "recompute.py", folder / "predictions-test.csv"],
                            capture_output=True, text=True, check=True, timeout=60)
    return {name: float(value) for name, value in (line.split() for line in answer.stdout.splitlines())}


def test_documented_recomputation_of_regression(tmp_path):
    random = np.random.default_rng(5)
    labels = np.round(random.normal(0, 1.6, 300), 1)
    predictions = labels * 0.5 + random.normal(0, 1, 300)
    rows = [{"id": f"video,{i}", "label": repr(float(t)), "prediction": repr(float(p))}
            for i, (t, p) in enumerate(zip(labels, predictions))]
    ours = {name: value for name, value in regression(predictions, labels).items() if not name.startswith("SIMS")}
    assert_equal(ours, documented_metrics(rows, tmp_path))


@pytest.mark.parametrize("names", [["0", "1", "2"], ["angry", "sehr fröhlich", "neu,tral"]])
def test_documented_recomputation_of_classification(tmp_path, names):
    random = np.random.default_rng(6)
    labels, predictions = random.integers(0, 3, 200), random.integers(0, 3, 200)
    rows = [{"id": f"Ses01_{i}", "label": names[t], "prediction": names[p], **{f"probability_{n}": 1 / 3 for n in names}}
            for i, (t, p) in enumerate(zip(labels, predictions))]
    ours = classification(predictions, labels, 3)
    documented = documented_metrics(rows, tmp_path)
    assert len(documented) == 4
    for name, value in documented.items():
        assert ours[name] == pytest.approx(value, rel=0, abs=1e-12), name
