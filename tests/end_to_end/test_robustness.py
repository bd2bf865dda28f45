"""`muster evaluate --drop --noise --by-group` and `muster predict --gates`: the scores of perturbed data are those of files that numpy has perturbed,
by the formulas of docs/robustness.md; spreads are numpy's; gates are the PyTorch oracle's."""
import csv
import json
import os
import re
import shutil
import xml.etree.ElementTree

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

import golden
import miar
import muster_program as mp
import philox

FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
N, DIMS, CLASSES = 96, {"audio": 6, "vision": 4}, ["calm", "glad", "sad"]
SITES = {"drop": 0xFFFFFFF0, "noise": 0xFFFFFFF1}
TRAINING = "training {{ threads: 1 epochs: {} batch_size: 16 reproducible: true microbatches: 6 }}\noptimizer {{ learning_rate: {} }}\n"
CURVES = ("--drop", "audio=0:0.25:1", "--drop", "vision=1", "--noise", "audio=0,0.5,4", "--seeds", 3)


def frames(task):
    """Both modalities show the label. Of every 24 samples 5 has audio only, 2 and 11 vision only; 5 and 11 are of the test split."""
    random = np.random.default_rng(11)
    labels = np.arange(N) // 6 % 3 if task == "classification" else np.round(random.uniform(-3, 3, N), 1)
    values = {}
    for place, (modality, dim) in enumerate(DIMS.items()):
        direction = random.normal(0, 2, (3, dim))
        lengths = [0 if i % 24 in ((2, 11), (5,))[place] else 2 + i % 4 for i in range(N)]
        signal = direction[labels] if task == "classification" else labels[:, None] * direction[0]
        values[modality] = [(signal[i] + random.normal(0, 0.7, (lengths[i], dim))).astype("f4") for i in range(N)]
        for sample in values[modality]:
            sample[:, 0] = 3  # never varies
    return labels, values


def write(path, task, values=None):
    labels, own = frames(task)
    return mp.tiny_data(path, task, N, DIMS, values=values or own, labels=labels, groups=[f"g{i % 4}" for i in range(N)],
                        **({"class_names": CLASSES} if task == "classification" else {}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """MIAR, features as they are."""
    folder = tmp_path_factory.mktemp("miar")
    data = write(folder / "data.h5", "classification")
    return mp.train(folder, f'data {{ path: "{data}" missing_modality: DROP }}\n' + mp.SMALL_MIAR + TRAINING.format(12, "5e-3"))


@pytest.fixture(scope="module")
def values_run(tmp_path_factory):
    """Late fusion, regression, standardized features."""
    folder = tmp_path_factory.mktemp("late_fusion")
    data = write(folder / "data.h5", "regression")
    return mp.train(folder, f'data {{ path: "{data}" missing_modality: DROP standardize: true }}\n' + mp.SMALL_LATE_FUSION + TRAINING.format(4, "1e-2"))


def evaluate(run, *arguments, **options):
    return mp.muster("evaluate", run, *arguments, **options)


def scores(run, *arguments):
    return json.loads(evaluate(run, *arguments, "--json").stdout)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def point(rows, perturbation, modality, rate):
    return [row for row in rows if (row["perturbation"], row["modality"], float(row["rate"])) == (perturbation, modality, rate)]


@pytest.fixture(scope="module")
def curves(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    printed = evaluate(run, *CURVES, "-o", folder / "scores.csv", "--plot", folder / "plot.svg").stdout
    return printed, table(folder / "scores.csv"), folder


def crc32c(text):
    crc = 0xFFFFFFFF
    for byte in text.encode():
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def dropped(values, modality, share, seed):
    lost = [philox.uniform(philox.words(seed, (0, crc32c(modality), SITES["drop"], i))[0]) < share for i in range(N)]
    return {**values, modality: [x[:0] if lost[i] else x for i, x in enumerate(values[modality])]}


def noisy(values, modality, rate, seed, deviation):
    def of(sample, x):
        words = philox.words(seed, (np.arange(-(-x.size // 4)), crc32c(modality), SITES["noise"], sample))
        radius, angle = np.sqrt(-2 * np.log(philox.uniform(words[:, 0::2]))), 2 * np.pi * philox.uniform(words[:, 1::2])
        normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).ravel()[:x.size].reshape(x.shape)
        return (x + rate * deviation * normal).astype("f4")

    return {**values, modality: [of(i, x) for i, x in enumerate(values[modality])]}


def expect_scores(row, found, exact=True):
    assert int(row["samples"]) == found["samples"]
    assert float(row["loss"]) == (found["loss"] if exact else pytest.approx(found["loss"], rel=1e-5))
    for name, value in found["metrics"].items():
        assert (float(row[name]) if row[name] else None) == (value if exact else pytest.approx(value, abs=1e-5)), name


def test_rate_zero_changes_nothing(run, curves):
    plain = scores(run)
    rows = curves[1]
    for perturbation in ("drop", "noise"):
        for row in point(rows, perturbation, "audio", 0):
            expect_scores(row, plain)
            assert row["left_out"] == "0"
    assert curves[0].startswith(evaluate(run).stdout)


def test_all_dropped_is_a_file_without_the_modality(run, curves, tmp_path):
    _, values = frames("classification")
    for modality in DIMS:
        without = write(tmp_path / f"without-{modality}.h5", "classification", {**values, modality: [x[:0] for x in values[modality]]})
        found = scores(run, "--data", without)
        rows = point(curves[1], "drop", modality, 1)
        assert len(rows) == 3 and {row["left_out"] for row in rows} == {str(N // 24)} and found["samples"] == N // 6 - N // 24
        for row in rows:
            expect_scores(row, found)


def test_dropped_and_noisy_data_are_what_numpy_makes_of_them(run, values_run, curves, tmp_path):
    _, values = frames("classification")
    lost = write(tmp_path / "lost.h5", "classification", dropped(values, "audio", 0.5, seed=2))
    expect_scores(point(curves[1], "drop", "audio", 0.5)[1], scores(run, "--data", lost))
    train = np.concatenate([x for i, x in enumerate(values["audio"]) if i % 6 < 4]).astype("f8")
    assert train.std(axis=0)[0] == 0
    loud = write(tmp_path / "loud.h5", "classification", noisy(values, "audio", 0.5, 3, train.std(axis=0)))
    expect_scores(point(curves[1], "noise", "audio", 0.5)[2], scores(run, "--data", loud), exact=False)
    # Of standardized features: by the deviations that lie beside the weights.
    _, values = frames("regression")
    deviation = mp.weights(values_run / "weights/best.safetensors")["standardize.vision.standard_deviation"]
    assert deviation[0] == 1
    loud = write(tmp_path / "loud-values.h5", "regression", noisy(values, "vision", 2, 1, np.where(deviation == 1, 0, deviation)))
    evaluate(values_run, "--noise", "vision=2", "-o", tmp_path / "scores.csv")
    expect_scores(table(tmp_path / "scores.csv")[0], scores(values_run, "--data", loud), exact=False)


def test_tables_are_means_and_deviations_over_seeds(run, curves):
    printed, rows, _ = curves
    for one in scores(run, *CURVES)["perturbations"]:
        by_seed = point(rows, one["perturbation"], one["modality"], one["rate"])
        assert [int(row["seed"]) for row in by_seed] == [seed["seed"] for seed in one["seeds"]] == [1, 2, 3]
        for row, seed in zip(by_seed, one["seeds"]):
            expect_scores(row, seed)
        for name in ("WA", "UA", "weighted_F1"):
            numbers = [float(row[name]) for row in by_seed]
            assert one["mean"][name] == pytest.approx(np.mean(numbers), abs=1e-14)
            assert one["std"][name] == pytest.approx(np.std(numbers, ddof=1), abs=1e-14)
            assert f"{np.mean(numbers):.4f} ± {np.std(numbers, ddof=1):.4f}" in printed
    assert "audio missing in a share of the samples" in printed and f"({N // 24} left out)" in printed


def test_scores_fall_with_the_rate(curves):
    for kind, rates in (("drop", (0, 0.25, 0.5, 0.75, 1)), ("noise", (0, 0.5, 4))):
        mean = [np.mean([float(row["WA"]) for row in point(curves[1], kind, "audio", rate)]) for rate in rates]
        assert mean == sorted(mean, reverse=True) and mean[0] > 0.9 and mean[-1] < mean[0] - 0.15, kind


def test_the_number_of_ranks_changes_nothing(run, curves, tmp_path):
    for ranks in (2, 3):
        evaluate(run, *CURVES, "-o", tmp_path / f"{ranks}.csv", ranks=ranks)
        assert (tmp_path / f"{ranks}.csv").read_bytes() == (curves[2] / "scores.csv").read_bytes()


def test_the_plot_is_deterministic_svg(run, curves, tmp_path):
    first = (curves[2] / "plot.svg").read_text()
    assert xml.etree.ElementTree.fromstring(first).tag.endswith("svg") and "<dc:date>" not in first
    if FULL:
        evaluate(run, *CURVES, "--plot", tmp_path / "again.svg")
        assert (tmp_path / "again.svg").read_text() == first


def test_gates_are_those_of_the_oracle(run, tmp_path):
    files = [tmp_path / f"{ranks}.csv" for ranks in (1, 2, 3)]
    printed = [mp.muster("predict", "--weights", run / "weights/best.safetensors", "--config", run / "config.txtpb", "--data", run.parent / "data.h5",
                         "-o", file, "--gates", ranks=ranks).stdout for ranks, file in enumerate(files, 1)]
    assert len({file.read_bytes() for file in files}) == 1
    rows = table(files[0])
    names = ["gate_audio", "gate_vision", "gate_joint"]
    assert list(rows[0]) == ["id", "label", "prediction", *(f"probability_{name}" for name in CLASSES), *names]
    gates = np.array([[float(row[name]) for name in names] for row in rows])
    assert np.abs(gates.sum(axis=1) - 1).max() < 1e-6 and gates.std() > 1e-3
    parameters = {name: torch.from_numpy(value).double() for name, value in mp.weights(run / "weights/best.safetensors").items()}
    config = {**miar.DEFAULTS, "dim": 16, "heads": 2, "ffn_dim": 32, "alignment_dim": 8, "layers": 1, "classes": 3, "modalities": list(DIMS.items())}
    _, values = frames("classification")
    for row, own in list(zip(rows, gates))[:12]:
        i = int(row["id"].split("_")[1])
        _, u, _ = miar.sample_forward({m: torch.from_numpy(values[m][i]).double() for m in DIMS}, parameters, config, golden.no_dropout, i)
        stacked = torch.stack([u[k] for k in ("audio", "vision", "joint")])
        expected = torch.softmax(stacked @ parameters["gate.weight"][0], dim=0).numpy()
        assert own == pytest.approx(expected, abs=1e-5)
    # The summary.
    predicted = np.array([row["prediction"] for row in rows])
    for place, name in enumerate(names):
        line = next(line for line in printed[0].splitlines() if line.strip().startswith(name))
        groups = [np.full(len(rows), True), *(predicted == c for c in CLASSES)]
        expected = [f"{gates[g, place].mean():.4f} ± {gates[g, place].std(ddof=1):.4f}" for g in groups]
        assert re.findall(r"[0-9.]+ ± [0-9.]+", line) == expected
    # Those who read predictions accept the columns.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.txtpb", "environment.json", "result.json"):
        shutil.copy(run / name, copy)
    result = mp.read_json(copy / "result.json")
    result["test"]["samples"] = len(rows)
    (copy / "result.json").write_text(json.dumps(result))
    shutil.copy(files[0], copy / "predictions-test.csv")
    found = scores(copy)
    assert found["metrics"]["WA"] == pytest.approx(sklearn_metrics.accuracy_score([row["label"] for row in rows], predicted))


def test_gates_by_the_sign_of_values(tmp_path):
    data = write(tmp_path / "data.h5", "regression")
    run = mp.train(tmp_path, f'data {{ path: "{data}" missing_modality: DROP }}\n' + mp.SMALL_MIAR + TRAINING.format(1, "5e-3"))
    words = ("predict", "--weights", run / "weights/best.safetensors", "--config", run / "config.txtpb", "--data", data, "-o", tmp_path / "gates.csv")
    printed = mp.muster(*words, "--gates").stdout
    rows = table(tmp_path / "gates.csv")
    assert list(rows[0]) == ["id", "label", "prediction", "gate_audio", "gate_vision", "gate_joint"]
    negative = sum(float(row["prediction"]) < 0 for row in rows)
    assert f"prediction < 0 ({negative})" in printed and f"prediction >= 0 ({N - negative})" in printed
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(tmp_path / "gates.csv", copy / "predictions-test.csv")
    result = mp.read_json(run / "result.json")
    result["test"]["samples"] = N
    (copy / "result.json").write_text(json.dumps(result))
    error = np.abs(np.array([float(row["prediction"]) - float(row["label"]) for row in rows]))
    assert scores(copy)["metrics"]["MAE"] == pytest.approx(error.mean(), abs=1e-12)


def test_by_group(run, tmp_path):
    evaluate(run, "--split", "all", "-o", tmp_path / "all.csv")
    found = scores(run, "--split", "all", "--by-group")
    printed = evaluate(run, "--split", "all", "--by-group").stdout
    groups = {f"g{g}": [row for row in table(tmp_path / "all.csv") if int(row["id"].split("_")[1]) % 4 == g] for g in range(4)}
    assert list(found["groups"]) == list(groups)
    for name, rows in groups.items():
        label, prediction = ([row[column] for row in rows] for column in ("label", "prediction"))
        group = found["groups"][name]
        assert group["samples"] == len(rows)
        assert group["metrics"]["WA"] == pytest.approx(sklearn_metrics.accuracy_score(label, prediction))
        assert group["metrics"]["UA"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(label, prediction))
        assert group["confusion"] == sklearn_metrics.confusion_matrix(label, prediction, labels=CLASSES).tolist()
        assert re.search(rf"^\s*{name}\s+{len(rows)}\s+{group['metrics']['WA']:.4f}\s", printed, re.M)
    assert np.array([group["confusion"] for group in found["groups"].values()]).sum(axis=0).tolist() == found["confusion"]
    # Many.
    labels, values = frames("classification")
    many = mp.tiny_data(tmp_path / "many.h5", "classification", N, DIMS, values=values, labels=labels, class_names=CLASSES, groups=[f"v{i}" for i in range(N)])
    words = ("--split", "all", "--data", many, "--by-group")
    assert f"there are {N} groups" in evaluate(run, *words, code=2).stderr
    assert len(scores(run, *words)["groups"]) == N
    none = mp.tiny_data(tmp_path / "none.h5", "classification", N, DIMS, values=values, labels=labels, class_names=CLASSES, groups=None)
    assert "has no groups" in evaluate(run, "--data", none, "--by-group", code=65).stderr


@pytest.mark.parametrize("words, said", [
    (("--drop", "text=0.5", "--noise", "txet=1"), ["--drop 'text'", "--noise 'txet'", "it uses audio, vision"]),
    (("--drop", "audio=0:0.5:1.5"), ["between 0 and 1"]),
    (("--drop", "audio=-0.1"), ["between 0 and 1"]),
    (("--noise", "audio=-1,1"), ["noise is between 0"]),
    (("--noise", "audio=inf"), ["MODALITY=START:STEP:STOP"]),
    (("--noise", "audio=0:0:1", "--drop", "audio", "--drop", "=1"), ["'audio=0:0:1'", "'audio'", "'=1'", "MODALITY=RATE"]),
    (("--drop", "audio=0", "--drop", "audio=1"), ["has rates already"]),
    (("--seeds", 3), ["--seeds is for --drop and --noise"]),
    (("--plot", "plot.svg"), ["--plot is for --drop and --noise"]),
    (("--drop", "audio=1", "-o", "same", "--plot", "same"), ["name the same file"]),
])
def test_wrong_options_are_refused(run, tmp_path, words, said):
    message = evaluate(run, *words, code=2, cwd=tmp_path).stderr
    assert all(text in message for text in said), message
    assert not list(tmp_path.iterdir())


def test_what_models_and_runs_rule_out(run, values_run, tmp_path):
    data = write(tmp_path / "data.h5", "classification")
    needs_all = mp.train(tmp_path, f'data {{ path: "{data}" missing_modality: DROP }}\n' + mp.SMALL_FOAL_NET.replace("layers", "heads: 2 layers") +
                         TRAINING.format(1, "1e-3"), "foal_net")
    message = evaluate(needs_all, "--drop", "audio=0.5", code=2).stderr
    assert "Foal-Net needs every modality" in message and "--noise" in message
    assert len(scores(needs_all, "--noise", "audio=1")["perturbations"]) == 1
    words = ("--weights", values_run / "weights/best.safetensors", "--config", values_run / "config.txtpb", "--data", values_run.parent / "data.h5")
    assert "Late fusion has no gates" in mp.muster("predict", *words, "-o", tmp_path / "gates.csv", "--gates", code=2).stderr
    assert not (tmp_path / "gates.csv").exists()
    shutil.rmtree(needs_all / "weights")
    assert "weights were not kept" in evaluate(needs_all, "--noise", "audio=1", code=2).stderr
    assert "weights were not kept" in evaluate(needs_all, "--by-group", code=2).stderr
    (tmp_path / "notes.csv").write_text("mine\n")
    assert "something else is there" in evaluate(run, "--drop", "audio=1", "-o", tmp_path / "notes.csv", code=2).stderr


def test_samples_without_anything_left_are_undefined(tmp_path):
    """A model of one modality, all of which is dropped."""
    data = write(tmp_path / "data.h5", "regression")
    run = mp.train(tmp_path, f'data {{ path: "{data}" modalities: "vision" missing_modality: DROP }}\n' + mp.SMALL_LATE_FUSION + TRAINING.format(1, "1e-2"))
    printed = evaluate(run, "--drop", "vision=0.5,1", "-o", tmp_path / "scores.csv").stdout
    half, none = table(tmp_path / "scores.csv")
    everything = scores(run)["samples"]
    assert int(half["samples"]) + int(half["left_out"]) == everything and 0 < int(half["samples"]) < everything
    assert (none["samples"], none["left_out"]) == ("0", str(everything)) and none["MAE"] == none["loss"] == ""
    assert re.search(r"^\s*1\s+0 \(\d+ left out\)\s+undefined\s", printed, re.M) and "no other modality than vision" in printed


def test_noise_on_waveforms_is_in_front_of_frozen_encoders(tmp_path):
    """By each recording's RMS, not clipped; the encoder runs again although the run had its features. Tokens can only be dropped."""
    tiny = mp.ROOT / "experiments/encoders"
    for name in ("wavlm", "bert"):
        mp.muster("encoders", "init", "--config", tiny / f"tiny_{name}/config.json", "--seed", 4, "-o", tmp_path / name)
    random = np.random.default_rng(3)
    audio = [(0.5 * random.uniform(-1, 1, (1600 + 40 * i, 1)) / (1 + i % 3)).astype("f4") for i in range(N // 4)]
    text = [random.integers(4, 32, (3 + i % 4, 1)) for i in range(N // 4)]

    def write_raw(name, audio, text=text):
        return mp.tiny_data(tmp_path / name, "regression", N // 4, values={"audio": audio, "text": text}, dtype={"text": "int32"}, sample_rates={"audio": 16000})

    blocks = "".join(f'encoders {{ modality: "{m}" path: "{tmp_path / name}" train: FROZEN }}\n' for m, name in (("audio", "wavlm"), ("text", "bert")))
    run = mp.train(tmp_path, f'data {{ path: "{write_raw("raw.h5", audio)}" modalities: ["audio", "text"] missing_modality: DROP }}\n' + blocks +
                   mp.SMALL_LATE_FUSION + TRAINING.format(1, "1e-2"))
    assert "holds tokens" in evaluate(run, "--noise", "text=1", code=2).stderr
    evaluate(run, "--noise", "audio=0,3", "--drop", "text=1", "-o", tmp_path / "scores.csv")
    loud = [noisy({"audio": audio[:i + 1]}, "audio", 3, 1, np.sqrt(np.mean(x.astype("f8") ** 2)))["audio"][i] for i, x in enumerate(audio)]
    assert max(np.abs(x).max() for x in loud) > 1
    rows = table(tmp_path / "scores.csv")
    expect_scores(point(rows, "noise", "audio", 0)[0], scores(run))
    expect_scores(point(rows, "noise", "audio", 3)[0], scores(run, "--data", write_raw("loud.h5", loud)), exact=False)
    expect_scores(point(rows, "drop", "text", 1)[0], scores(run, "--data", write_raw("mute.h5", audio, [x[:0] for x in text])))
    assert len({row["loss"] for row in rows}) == 3
