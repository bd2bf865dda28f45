"""Multi-label data (MOSEI's emotions), and what data.augment and data.clip_standardized do, from the outside."""
import json
import math

import h5py
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

import muster_program as mp

CLASSES = ["calm", "glad, or so", "sad"]
TRAINING = "training { threads: 1 batch_size: 8 epochs: 4 log_every_steps: 1 } optimizer { learning_rate: 0.003 }\n"
MODELS = {"miar": mp.SMALL_MIAR, "foal_net": mp.SMALL_FOAL_NET, "late_fusion": mp.SMALL_LATE_FUSION}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = mp.tiny_data(tmp_path_factory.mktemp("data") / "data.h5", "multilabel", 60, class_names=CLASSES)
    with h5py.File(path, "a") as file:  # labels that can be learnt: a feature of audio is above its mean
        frames, offsets = file["modalities/audio/values"][:], file["modalities/audio/offsets"][:]
        file["samples/label"][:] = [frames[begin:end, :3].mean(0) > 3 for begin, end in zip(offsets, offsets[1:])]
    return path


def experiment(model, data, fields=""):
    return MODELS[model] + f'data {{ path: "{data}" {fields} }}\n' + TRAINING


def bits_of(rows, column):
    return np.array([[int(row[f"{column}_{name}"]) for name in CLASSES] for row in rows], dtype=bool)


@pytest.fixture(scope="module", params=sorted(MODELS))
def run(request, data, tmp_path_factory):
    return mp.train(tmp_path_factory.mktemp("run"), experiment(request.param, data), request.param, 2)


def test_what_a_run_leaves(run, data):
    result, rows = mp.result(run), mp.predictions(run / "predictions-test.csv")
    labels, predicted = bits_of(rows, "label"), bits_of(rows, "prediction")
    with h5py.File(data) as file:
        expected = {sample.decode(): label for sample, label in zip(file["samples/id"], file["samples/label"][:])}
    assert all((expected[row["id"]] == label).all() for row, label in zip(rows, labels))
    probability = np.array([[float(row[f"probability_{name}"]) for name in CLASSES] for row in rows])
    assert ((probability > 0.5) == predicted).all() and 0 < probability.min() and probability.max() < 1
    found = result["test"]["metrics"]
    columns = list(zip(labels.T, predicted.T))
    assert found["mean_weighted_F1"] == pytest.approx(np.mean([f1_score(t, p, average="weighted", zero_division=0) for t, p in columns]), abs=1e-12)
    assert found["macro_F1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0), abs=1e-12)
    assert found["micro_F1"] == pytest.approx(f1_score(labels, predicted, average="micro", zero_division=0), abs=1e-12)
    assert found["subset_accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    for name, (t, p) in zip(CLASSES, columns):
        assert found[f"WA[{name}]"] == pytest.approx(balanced_accuracy_score(t, p), abs=1e-12) or t.all() or not t.any()
    assert result["best"]["selected_by"] == "valid/mean_weighted_F1"
    trained = mp.metrics_rows(run, "train")
    assert all(math.isfinite(row["loss"]) and "multilabel" in row["terms"] for row in trained)
    losses = [row["terms"]["multilabel"] for row in trained]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    with h5py.File(data) as file:
        of_training = file["samples/label"][:][file["samples/split"].asstr()[:] == "train"]
    assert result["trivial_baselines"]["prediction"] == ",".join(str(int(share > 0.5)) for share in of_training.mean(0))


def test_evaluate_gives_the_same_scores(run):
    output = mp.muster("evaluate", run, "--json", ranks=3).stdout
    assert json.loads(output)["metrics"] == pytest.approx(mp.result(run)["test"]["metrics"], abs=1e-12, nan_ok=True)
    table = mp.muster("evaluate", run).stdout
    assert "weighted_F1[glad, or so]" in table and "mean_WA" in table


def test_inspect_counts_every_class(data):
    facts = json.loads(mp.muster("data", "inspect", data, "--json").stdout)
    with h5py.File(data) as file:
        labels, train = file["samples/label"][:], file["samples/split"].asstr()[:] == "train"
    assert facts["task"] == "multilabel"
    assert [(entry["name"], entry["samples"]) for entry in facts["labels"]["classes"]] == list(zip(CLASSES, labels.sum(0).tolist()))
    assert facts["splits"]["train"]["classes"] == labels[train].sum(0).tolist()
    mp.muster("data", "verify", data)


def test_a_target_may_be_multi_label(data, tmp_path):
    other = mp.tiny_data(tmp_path / "other.h5", "regression", 60, dims={"audio": 8, "vision": 4})
    with h5py.File(data) as source, h5py.File(other, "a") as file:
        file["samples/targets/emotions"] = source["samples/label"][:]
        file["samples/targets/emotions"].attrs["class_names"] = CLASSES
    run = mp.train(tmp_path, experiment("late_fusion", other, 'target: "emotions"'))
    assert "mean_WA" in mp.result(run)["test"]["metrics"]


@pytest.mark.parametrize("damage, message", [
    (lambda label: np.where(label == 1, 2, label), "has 2 for class 'calm'"),
    (lambda label: label[:, :2], "has 2 columns, but there are 3 classes"),
    (lambda label: label[:, 0], "must have two dimensions"),
    (lambda label: label[:-1], "has 59 entries, but there are 60 samples"),
    (lambda label: label.astype(np.float32), "must be of type integer"),
])
def test_wrong_labels_are_refused(damage, message, data, tmp_path):
    wrong = tmp_path / "wrong.h5"
    wrong.write_bytes(data.read_bytes())
    with h5py.File(wrong, "a") as file:
        label = damage(file["samples/label"][:])
        del file["samples/label"]
        file["samples/label"] = label
    assert message in mp.muster("data", "verify", wrong, code=65).stderr


def test_weights_of_another_task_are_refused(data, tmp_path):
    """The classes have the same names, and the weights the same shapes."""
    single = mp.tiny_data(tmp_path / "single.h5", "classification", 60, class_names=CLASSES)
    run = mp.train(tmp_path, experiment("late_fusion", single))
    message = mp.muster("evaluate", run, "--data", data, code=65).stderr
    assert "trained for classification" in message and "multilabel" in message


def test_class_balanced_sampling_is_refused(data, tmp_path):
    config = mp.write_config(tmp_path / "balanced.txtpb", experiment("miar", data).replace("epochs", "sampling: CLASS_BALANCED epochs"))
    assert "one class for each sample" in mp.muster("train", config, code=78).stderr


def test_clip_standardized_is_numpy_s_clip(tmp_path):
    """The same predictions as from features that numpy has standardised and clipped."""
    data = mp.tiny_data(tmp_path / "data.h5", "regression", 36)
    run = mp.train(tmp_path, experiment("miar", data, "standardize: true clip_standardized: 0.7"), "clipped")
    moments = mp.weights(run / "weights/last.safetensors")
    with h5py.File(data, "a") as file:
        for name, modality in file["modalities"].items():
            values = modality["values"][:].astype(np.float64)
            values = (values - moments[f"standardize.{name}.mean"]) / moments[f"standardize.{name}.standard_deviation"]
            clipped = np.clip(values.astype(np.float32), -0.7, 0.7)
            assert (clipped != values.astype(np.float32)).mean() > 0.2
            modality["values"][:] = clipped
    other = mp.train(tmp_path, experiment("miar", data), "by_numpy")
    assert (run / "predictions-test.csv").read_bytes() == (other / "predictions-test.csv").read_bytes()


def test_clip_without_standardize_is_noted(data, tmp_path):
    config = mp.write_config(tmp_path / "clip.txtpb", experiment("miar", data, "clip_standardized: 5"))
    assert "data.clip_standardized = 5 has no effect" in mp.muster("train", config, "--dry-run").stderr


def test_modality_dropout_of_one_modality_only(data, tmp_path):
    """What is never seen cannot matter: with probability almost 1 the model learns from the other modality alone."""
    almost = 'augment { modality_dropout: 0.999999 modalities: "vision" }'
    runs = []
    for name, scale in (("as_it_is", 1), ("other_vision", 100)):
        path = tmp_path / f"{name}.h5"
        path.write_bytes(data.read_bytes())
        with h5py.File(path, "a") as file:
            file["modalities/vision/values"][:] *= scale
        runs.append(mp.train(tmp_path, experiment("late_fusion", path, almost), name))
    losses = [[row["loss"] for row in mp.metrics_rows(run, "train")] for run in runs]
    assert losses[0] == losses[1]
    without = mp.train(tmp_path, experiment("late_fusion", tmp_path / "other_vision.h5"), "without")
    assert losses[0] != [row["loss"] for row in mp.metrics_rows(without, "train")]


@pytest.mark.parametrize("model, fields, code, message", [
    ("foal_net", "augment { modality_dropout: 0.1 }", 78, "foal_net needs every modality"),
    ("miar", "augment { modality_dropout: 1 }", 78, "data.augment.modality_dropout"),
    ("miar", 'augment { modality_dropout: 0.1 modalities: "text" }', 78, 'data.augment.modalities: "text" is not used'),
    ("miar", "standardize: true clip_standardized: -1", 78, "data.clip_standardized"),
])
def test_wrong_settings_are_refused(model, fields, code, message, data, tmp_path):
    config = mp.write_config(tmp_path / "wrong.txtpb", experiment(model, data, fields))
    assert message in mp.muster("train", config, "--run-dir", tmp_path / "run", code=code).stderr


def test_a_modality_that_no_training_sample_has_is_an_error(tmp_path):
    """Also without standardize: its weights would stay random, and evaluation might use them."""
    splits = (["train"] * 4 + ["valid", "test"]) * 6
    lengths = {"text": [3] * 36, "audio": [2] * 36, "vision": [0 if split == "train" else 2 for split in splits]}
    data = mp.tiny_data(tmp_path / "data.h5", "regression", 36, lengths=lengths)
    config = mp.write_config(tmp_path / "absent.txtpb", experiment("miar", data))
    message = mp.muster("train", config, "--run-dir", tmp_path / "run", code=65).stderr
    assert "no training sample has modality 'vision'" in message and not (tmp_path / "run").exists()


def test_a_metric_of_sims_needs_its_labels(tmp_path):
    """Its labels are from -1 to 1; the scores of others would mean nothing, and the first weights would be the best."""
    data = mp.tiny_data(tmp_path / "data.h5", "regression", 36)
    config = mp.write_config(tmp_path / "sims.txtpb", experiment("late_fusion", data) + 'evaluation { select_by: "SIMS_MAE" }\n')
    message = mp.muster("train", config, "--run-dir", tmp_path / "run", code=78).stderr
    assert "SIMS_MAE is not defined for these labels" in message and not (tmp_path / "run").exists()
    with h5py.File(data, "a") as file:
        file["samples/label"][:] /= 3
    mp.muster("train", config, "--run-dir", tmp_path / "run")
    assert mp.result(tmp_path / "run")["best"]["selected_by"] == "valid/SIMS_MAE"


def test_predictions_are_written_again_and_gates_are_by_class(data, tmp_path):
    run = mp.train(tmp_path, experiment("miar", data))
    words = ("predict", "--weights", run / "weights/best.safetensors", "--config", run / "config.txtpb", "--data", data, "--gates", "-o", tmp_path / "all.csv")
    for _ in range(2):  # the second takes the place of the first
        printed = mp.muster(*words).stdout
    rows = mp.predictions(tmp_path / "all.csv")
    for name, count in zip(CLASSES, bits_of(rows, "prediction").sum(0)):
        assert f"predicted {name} ({count})" in printed
    assert all(sum(float(row[f"gate_{stream}"]) for stream in ("audio", "vision", "joint")) == pytest.approx(1) for row in rows)


def test_weights_selected_by_a_metric_of_sims_are_applied_to_other_data(tmp_path):
    data = mp.tiny_data(tmp_path / "data.h5", "regression", 36)
    other = tmp_path / "other.h5"
    other.write_bytes(data.read_bytes())
    with h5py.File(data, "a") as file:
        file["samples/label"][:] /= 3
    run = mp.train(tmp_path, experiment("late_fusion", data) + 'evaluation { select_by: "SIMS_MAE" }\n')
    assert "MAE" in mp.muster("evaluate", run, "--data", other).stdout


def test_tools_for_data_are_for_one_process(data, tmp_path):
    """Each rank would write the same file."""
    result = mp.muster("data", "subset", data, "--first", 3, "-o", tmp_path / "few.h5", ranks=2, code=2)
    assert "is for one process" in result.stderr and not (tmp_path / "few.h5").exists()
