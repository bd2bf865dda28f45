"""What `muster train` leaves behind: complete, consistent with itself, and equal to what public tools compute from it."""
import hashlib
import json
import math
import re

import h5py
import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

import golden
import muster_program as mp

FOAL = mp.SMALL_FOAL_NET + mp.CLASSIFICATION
MIAR = mp.SMALL_MIAR + mp.REGRESSION


def training(fields=""):
    return f"training {{ threads: 1 batch_size: 8 log_every_steps: 1 {fields} }}\n"


SHORT = training("epochs: 2")
FILES = {"config.txtpb", "environment.json", "metrics.jsonl", "weights/best.safetensors", "weights/last.safetensors",
         "predictions-valid.csv", "predictions-test.csv", "result.json", "logs/checkpoints.jsonl", "events.out.tfevents",
         "checkpoints/step/MANIFEST.pb", "checkpoints/step/rank-0-of-1.safetensors"}


def fingerprint(run, which="best"):
    return mp.muster("checkpoints", "fingerprint", run, "--weights", which).stdout.strip()


@pytest.mark.parametrize("text", [FOAL, MIAR], ids=["foal_net", "miar"])
def test_run_directory_is_complete(text, tmp_path):
    run = mp.train(tmp_path, text + SHORT)
    files = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    assert {re.sub(r"step-[0-9]+/", "step/", re.sub(r"tfevents\..*", "tfevents", file)) for file in files} == FILES
    rows = mp.metrics_rows(run, "train")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and len(mp.metrics_rows(run, "valid")) == 2
    result, environment = mp.result(run), mp.read_json(run / "environment.json")
    assert result["last"]["step"] == len(rows) and environment["world_size"] == 1
    count = sum(array.size for array in mp.weights(run / "weights/last.safetensors").values())
    assert count == result["parameters"] > 1000
    # The resolved config is a config: the same run comes out of it.
    again = tmp_path / "again"
    mp.muster("train", run / "config.txtpb", "--run-dir", again)
    assert fingerprint(run, "last") == fingerprint(again, "last") == result["last"]["fingerprint"]


def test_regression_metrics_from_the_predictions(tmp_path):
    run = mp.train(tmp_path, mp.SMALL_MIAR + mp.REGRESSION.replace("60", "120") + training("epochs: 4") + "optimizer { learning_rate: 5e-3 }")
    for split in ("valid", "test"):
        table, found = mp.predictions(run / f"predictions-{split}.csv"), mp.result(run)[split]["metrics"]
        p, t = (np.array([float(row[column]) for row in table]) for column in ("prediction", "label"))
        not_zero = t != 0
        want = {"MAE": np.abs(p - t).mean(), "Corr": np.corrcoef(p, t)[0, 1],
                "Mult_acc_7": np.mean(np.round(np.clip(p, -3, 3)) == np.round(np.clip(t, -3, 3))),
                "Mult_acc_5": np.mean(np.round(np.clip(p, -2, 2)) == np.round(np.clip(t, -2, 2))),
                "Has0_acc_2": np.mean((p >= 0) == (t >= 0)), "Non0_acc_2": np.mean((p > 0)[not_zero] == (t > 0)[not_zero]),
                "Has0_F1_score": sklearn_metrics.f1_score(t >= 0, p >= 0, average="weighted"),
                "Non0_F1_score": sklearn_metrics.f1_score((t > 0)[not_zero], (p > 0)[not_zero], average="weighted"),
                "CCC": 2 * np.cov(p, t, ddof=0)[0, 1] / (p.var() + t.var() + (p.mean() - t.mean()) ** 2)}
        assert {name for name, value in found.items() if value is None} == {name for name in found if name.startswith("SIMS_")}
        found = {name: value for name, value in found.items() if value is not None}
        assert want.keys() == found.keys() and mp.result(run)[split]["samples"] == len(table) > 10
        for name, value in want.items():
            assert found[name] == pytest.approx(value, abs=1e-12, rel=1e-12), name
    assert mp.result(run)["best"]["value"] == min(row["metrics"]["MAE"] for row in mp.metrics_rows(run, "valid"))


def test_classification_metrics_from_the_predictions(tmp_path):
    run = mp.train(tmp_path, mp.SMALL_FOAL_NET + mp.CLASSIFICATION.replace("60", "100") + training("epochs: 4") + "optimizer { learning_rate: 3e-3 }")
    names = ["happy", "neutral", "sad", "angry"]
    for split in ("valid", "test"):
        table, found = mp.predictions(run / f"predictions-{split}.csv"), mp.result(run)[split]
        p, t = ([row[column] for row in table] for column in ("prediction", "label"))
        probabilities = np.array([[float(row[f"probability_{name}"]) for name in names] for row in table])
        assert np.abs(probabilities.sum(1) - 1).max() < 1e-12
        assert [names[i] for i in probabilities.argmax(1)] == p
        assert found["confusion"] == sklearn_metrics.confusion_matrix(t, p, labels=names).tolist()
        assert found["metrics"]["WA"] == pytest.approx(sklearn_metrics.accuracy_score(t, p), abs=1e-12)
        assert found["metrics"]["UA"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(t, p), abs=1e-12)
        assert found["metrics"]["weighted_F1"] == pytest.approx(sklearn_metrics.f1_score(t, p, average="weighted"), abs=1e-12)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_evaluate_and_predict_repeat_the_run(task, tmp_path):
    data = mp.tiny_data(tmp_path / "data.h5", task, 48)
    model = mp.SMALL_FOAL_NET if task == "classification" else mp.SMALL_MIAR
    run = mp.train(tmp_path, model + 'data { path: "data.h5" standardize: true }\n' + SHORT)

    def evaluate(*arguments):
        return json.loads(mp.muster("evaluate", run, "--json", *arguments).stdout)
    result = mp.result(run)
    assert evaluate() == result["test"] and evaluate("--split", "valid") == result["valid"]
    assert evaluate("--split", "train")["samples"] == 32 and evaluate("--split", "all")["samples"] == 48
    moved = data.rename(tmp_path / "moved.h5")
    assert evaluate("--data", moved) == result["test"]
    assert "Cannot open" in mp.muster("evaluate", run, code=74).stderr

    unlabelled = mp.tiny_data(tmp_path / "unlabelled.h5", task, 48)
    with h5py.File(unlabelled, "a") as file:
        del file["samples/label"]
    expected = {row["id"]: row for split in ("valid", "test") for row in mp.predictions(run / f"predictions-{split}.csv")}

    def predict(config, source):
        out = tmp_path / "predicted.csv"
        mp.muster("predict", "--weights", run / "weights/best.safetensors", "--config", config, "--data", source, "-o", out)
        return {row["id"]: row for row in mp.predictions(out)}
    # Other batches round differently. Next to the same weights in double precision, predict's error is at most twice the run's, and 4 eps.
    double = tmp_path / "double.txtpb"
    double.write_text((run / "config.txtpb").read_text().replace("precision: FP32", "precision: FP64"))
    assert "precision: FP64" in double.read_text()
    exact = predict(double, moved)
    columns = [column for column in next(iter(expected.values())) if column.startswith("probability_") or column == "prediction" and task == "regression"]
    assert columns
    for source in (moved, unlabelled):
        rows = predict(run / "config.txtpb", source)
        assert len(rows) == 48 and ("label" in next(iter(rows.values()))) == (source == moved)
        if task == "classification":
            assert all(rows[name]["prediction"] == row["prediction"] for name, row in expected.items())
        for column in columns:
            ours, theirs, truth = (np.array([float(table[name][column]) for name in expected]) for table in (rows, expected, exact))
            allowed = 2 * np.abs(theirs - truth).max() + 4 * np.finfo(np.float32).eps * np.abs(truth).max()
            assert np.abs(ours - truth).max() <= allowed, column


@pytest.mark.parametrize("split,kept", [("kind: FIXED", None), ("kind: LEAVE_ONE_GROUP_OUT test_group: \"g1\" validation_share: 0.25", "g1"),
                                        ("kind: K_FOLD folds: 3 fold: 2", "?")], ids=["fixed", "leave-one-out", "k-fold"])
def test_splits_and_standardization(split, kept, tmp_path):
    data = mp.tiny_data(tmp_path / "data.h5", "regression", 36)
    run = mp.train(tmp_path, mp.SMALL_MIAR + f'data {{ path: "data.h5" standardize: true split {{ {split} }} }}\n' + SHORT)
    parts = {name: [row["id"] for row in mp.predictions(run / f"predictions-{name}.csv")] for name in ("valid", "test")}
    with h5py.File(data) as file:
        ids, groups, splits = (file[f"samples/{name}"].asstr()[:].tolist() for name in ("id", "group", "split"))
        frames = {m: (file[f"modalities/{m}/values"][:].astype(float), file[f"modalities/{m}/offsets"][:]) for m in ("text", "audio", "vision")}
    group_of = dict(zip(ids, groups))
    if kept is None:
        assert parts == {name: [i for i, s in zip(ids, splits) if s == name] for name in parts}
        train = {i for i, s in zip(ids, splits) if s == "train"}
    else:
        tested = {group_of[i] for i in parts["test"]}
        assert len(tested) == 1 and (kept == "?" or tested == {kept})
        assert parts["test"] == [i for i in ids if group_of[i] in tested]
        train = set(ids) - set(parts["test"]) - set(parts["valid"])
        assert len(parts["valid"]) == round((0.25 if kept == "g1" else 0.1) * 24)
    assert mp.read_json(run / "environment.json")["data"]["train"] == len(train)
    saved = mp.weights(run / "weights/best.safetensors")
    for m, (values, offsets) in frames.items():
        own = np.concatenate([values[offsets[i]:offsets[i + 1]] for i in range(len(ids)) if ids[i] in train])
        assert np.allclose(saved[f"standardize.{m}.mean"], own.mean(0), rtol=1e-12, atol=0)
        assert np.allclose(saved[f"standardize.{m}.standard_deviation"], own.std(0), rtol=1e-11, atol=0)
    assert json.loads(mp.muster("evaluate", run, "--json").stdout) == mp.result(run)["test"]


def test_fingerprints(tmp_path):
    runs = {name: mp.train(tmp_path, MIAR + SHORT + f"seed: {seed}\n", name) for name, seed in (("one", 1), ("same", 1), ("two", 2))}
    prints = {(name, which): fingerprint(run, which) for name, run in runs.items() for which in ("best", "last")}
    start = mp.train(tmp_path, MIAR + training("max_steps: 1") + "optimizer { learning_rate: 0 weight_decay: 0 }\n", "start")
    initial = fingerprint(start, "last")
    for which in ("best", "last"):
        assert prints["one", which] == prints["same", which] == mp.result(runs["one"])[which]["fingerprint"]
        assert len({prints["one", which], prints["two", which], initial}) == 3
    # Trained means: every tensor that a loss reaches has moved.
    first, last = mp.weights(start / "weights/last.safetensors"), mp.weights(runs["one"] / "weights/last.safetensors")
    assert not [name for name in first if (first[name] == last[name]).all()]
    # The recipe of the documentation, as it stands there.
    recipe = re.search(r"```python\n(.*?)```", (mp.ROOT / "docs/fingerprint.md").read_text(), re.DOTALL)[1]
    other = mp.execute([mp.sys.executable, "-c", recipe, runs["one"] / "weights/last.safetensors"])
    assert other.stdout.strip() == prints["one", "last"], other.stderr
    assert mp.muster("checkpoints", "fingerprint", runs["one"] / "weights/last.safetensors").stdout.strip() == prints["one", "last"]


def test_init_from(tmp_path):
    text = MIAR + training("max_steps: 3 sampling: SEQUENTIAL")
    run = mp.train(tmp_path, text + "optimizer { learning_rate: 0 weight_decay: 0 } seed: 5\n", "start")
    moved = mp.train(tmp_path, text + "optimizer { learning_rate: 1e-2 }\n", "moved")
    still = "optimizer { learning_rate: 0 weight_decay: 0 }\n"

    def first_loss(name, *arguments):
        return mp.metrics_rows(mp.train(tmp_path, text + still, name, 1, "--set", "miar.dropout=0", *arguments), "train")[0]["loss"]
    again = mp.train(tmp_path, text + still, "again", 1, "--init-from", moved / "weights/last.safetensors")
    assert fingerprint(again, "last") == fingerprint(moved, "last")
    losses = [first_loss("a", "--init-from", moved / "weights/last.safetensors"), first_loss("b", "--init-from", again / "weights/last.safetensors"),
              first_loss("c"), first_loss("d", "--init-from", run / "weights/last.safetensors")]
    assert losses[0] == losses[1] and len(set(losses)) == 3

    config = mp.write_config(tmp_path / "wider.txtpb", text)
    for ranks in (1, 2):
        error = mp.muster("train", config, "--run-dir", tmp_path / "wider", "--set", "miar.ffn_dim=48", "--set", "miar.layers=2", "--init-from",
                          moved / "weights/last.safetensors", ranks=ranks, code=65).stderr
        assert "wrong shape: layers.0.joint.ffn.input.weight is [32, 16], the model needs [48, 16]" in error
        assert "missing: layers.1.text.attention.query.weight [16, 16]" in error
        assert error.count("muster: ") == 1 and not (tmp_path / "wider").exists()


def block(text, name):
    """The fields of one block of a resolved config, as Python values."""
    fields = re.search(rf"^{name} {{\n(.*?)^}}", text, re.M | re.S)[1]
    return {key: float(value) if re.fullmatch(r"[-+.e\d]*\d[-+.e\d]*", value) else value for key, value in re.findall(r"^  (\w+): ([^\s#]+)", fields, re.M)}


def reference_case(run, initial, data):
    """A run whose batch is the whole training split, in order, for tests/reference: parameters, batch and config."""
    text = (run / "config.txtpb").read_text()
    sizes = {key: int(value) if isinstance(value, float) and value == int(value) and key in golden.MODELS["foal_net"].DEFAULTS else value
             for key, value in block(text, "foal_net").items()}
    config = golden.full_config("foal_net", block(text, "optimizer"), **{**sizes, "classes": 3, "audio_dim": 8, "video_dim": 4})
    with h5py.File(data) as file:
        train = np.flatnonzero(file["samples/split"].asstr()[:] == "train")
        batch = {"labels": torch.from_numpy(file["samples/label"][:][train])}
        for m in ("audio", "vision"):
            values, offsets = file[f"modalities/{m}/values"][:], file[f"modalities/{m}/offsets"][:]
            batch[m] = [torch.from_numpy(values[offsets[i]:offsets[i + 1]]).double() for i in train]
    return {name: torch.from_numpy(value).double() for name, value in mp.weights(initial).items()}, batch, config


def single(value):
    return [single(part) for part in value] if isinstance(value, list) else value.float() if value.is_floating_point() else value


def test_precisions(tmp_path):
    """Against tests/reference, which trains the same weights on the same batch by PyTorch. In double precision it is the same to rounding. In float32
    and bfloat16 ours errs at most twice as much as PyTorch's, and by 4 eps of the loss (tests/helpers/rounding.h says why).

    AdamW's epsilon is large: with a small one the first step goes by the signs of gradients, which near 0 are rounding. And in bfloat16 there are no
    drawn negatives: the least rounding may draw another."""
    data = mp.tiny_data(tmp_path / "data.h5")
    model = mp.SMALL_FOAL_NET.replace("}", "feature_dropout: 0 projection_dropout: 0 fusion_dropout: 0 classifier_dropout: 0 }")
    text = (model + 'data { path: "data.h5" }\nseed: 5\noptimizer { learning_rate: 0.01 epsilon: 1e-3 }\n' +
            training("max_steps: 4 sampling: SEQUENTIAL").replace("batch_size: 8", "batch_size: 64"))
    initial = mp.train(tmp_path, text, "initial", 1, "--max-steps", 1, "--set", "optimizer.learning_rate=0", "--set",
                       "optimizer.weight_decay=0") / "weights/last.safetensors"
    runs = {}
    for name, precision, mem_weight in (("FP64", "FP64", 0.1), ("FP32", "FP32", 0.1), ("FP64-no-mem", "FP64", 0), ("BF16", "BF16", 0)):
        runs[name] = mp.train(tmp_path, text, name, 1, "--init-from", initial, "--set", f"training.precision={precision}", "--set",
                              f"foal_net.mem_weight={mem_weight}")
    losses = {name: np.array([row["loss"] for row in mp.metrics_rows(run, "train")]) for name, run in runs.items()}
    for reduced, exact, eps in (("FP32", "FP64", torch.finfo(torch.float32).eps), ("BF16", "FP64-no-mem", torch.finfo(torch.bfloat16).eps)):
        parameters, batch, config = reference_case(runs[exact], initial, data)
        truth = golden.run_case(parameters, batch, config, 4, 5)["losses"].numpy()
        assert np.allclose(losses[exact], truth, rtol=1e-12, atol=0)  # sums of a few hundred terms: some hundred eps
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced == "BF16"):
            rounded = [{name: single(value) for name, value in tensors.items()} for tensors in (parameters, batch)]
            theirs = golden.run_case(*rounded, config, 4, 5)["losses"].double().numpy()
        error, their_error = (np.abs(found - truth).max() for found in (losses[reduced], theirs))
        assert 0 < error <= 2 * their_error + 4 * eps * truth.max(), (reduced, error, their_error, truth)
    assert np.abs(losses["BF16"] - losses["FP64-no-mem"]).max() > 1e-6 * losses["FP64-no-mem"].max()  # coarser than float32
    dtypes = {name: {str(a.dtype) for a in mp.weights(run / "weights/last.safetensors").values()} for name, run in runs.items()}
    assert dtypes == {"FP64": {"float64"}, "FP64-no-mem": {"float64"}, "FP32": {"float32"}, "BF16": {"float32"}}


def scheduled(make, steps, per_epoch=False, steps_per_epoch=1):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    scheduler = make(optimizer)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not per_epoch or (step + 1) % steps_per_epoch == 0:
            scheduler.step()
    return rates


@pytest.mark.parametrize("name", ["constant", "warmup", "cosine", "warmup-cosine", "step"])
def test_learning_rate_schedules(name, tmp_path):
    lr = torch.optim.lr_scheduler
    fields = {"constant": "", "warmup": "warmup_steps: 4", "cosine": "schedule: COSINE final_lr_ratio: 0.1",
              "warmup-cosine": "schedule: COSINE warmup_steps: 4", "step": "schedule: STEP step_factor: 0.5 step_epochs: 2"}[name]
    run = mp.train(tmp_path, MIAR + training("epochs: 5") + f"optimizer {{ learning_rate: 2e-3 {fields} }}\n")
    found = [row["learning_rate"] for row in mp.metrics_rows(run, "train")]
    n = len(found)
    per_epoch = n // 5
    # The warm-up ends with the peak in its last step; the first step after it is the cosine's first.
    warm = {"start_factor": 0.25, "end_factor": 1.0, "total_iters": 3}
    want = {"constant": lambda: [2e-3] * n,
            "warmup": lambda: scheduled(lambda o: lr.LinearLR(o, **warm), n),
            "cosine": lambda: scheduled(lambda o: lr.CosineAnnealingLR(o, n - 1, eta_min=2e-4), n),
            "warmup-cosine": lambda: scheduled(lambda o: lr.LinearLR(o, **warm), 4) + scheduled(lambda o: lr.CosineAnnealingLR(o, n - 5), n - 4),
            "step": lambda: scheduled(lambda o: lr.StepLR(o, 2, 0.5), n, True, per_epoch)}[name]()
    assert n % 5 == 0 and n >= 20 and np.allclose(found, want, rtol=1e-12, atol=1e-18)


def test_early_stopping_and_steps(tmp_path):
    stopped = mp.train(tmp_path, MIAR + training("epochs: 40") + "optimizer { learning_rate: 0 } evaluation { patience: 2 }\n", "stopped")
    assert mp.result(stopped)["stopped_early"] and mp.result(stopped)["best"]["epoch"] == 1
    assert [row["epoch"] for row in mp.metrics_rows(stopped, "valid")] == [1, 2, 3]
    some = mp.train(tmp_path, MIAR + training("epochs: 40") + "evaluation { every_steps: 2 every_epochs: 0 }\n", "some", 1, "--max-steps", "5")
    assert [row["step"] for row in mp.metrics_rows(some, "train")] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in mp.metrics_rows(some, "valid")] == [2, 4, 5] and not mp.result(some)["stopped_early"]


def test_a_metric_that_is_never_defined_chooses_nothing(tmp_path):
    labels = np.where(np.arange(24) % 6 == 4, 1.0, np.arange(24) % 5)  # the same for all validation samples: Corr is not defined
    mp.tiny_data(tmp_path / "data.h5", "regression", labels=labels)
    config = mp.write_config(tmp_path / "x.txtpb", mp.SMALL_MIAR + 'data { path: "data.h5" } evaluation { select_by: "Corr" }\n' + SHORT)
    shown = mp.muster("train", config, "--run-dir", tmp_path / "run")
    assert shown.stderr.count("not defined on this split, so it cannot choose the best weights") == 2 and "best so far" not in shown.stderr
    assert mp.result(tmp_path / "run")["best"]["value"] is None


def test_dry_run_writes_nothing(tmp_path):
    config = mp.write_config(tmp_path / "experiment.txtpb", MIAR)
    for ranks in (1, 2):
        out = mp.muster("train", config, "--dry-run", cwd=tmp_path, ranks=ranks)
        assert out.stdout.count("dry run:") == 1 and "60 samples" in out.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.txtpb"]


def test_existing_run_is_left_alone(tmp_path):
    run = mp.train(tmp_path, MIAR + training("max_steps: 1"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}
    for ranks in (1, 2):
        error = mp.muster("train", tmp_path / "run.txtpb", "--run-dir", run, ranks=ranks, code=2).stderr
        assert error.count("exists already and holds a finished run") == 1 and "--run-dir" in error
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}


def test_paths_and_data_hash(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir(), elsewhere.mkdir()
    data = mp.tiny_data(home / "data.h5", "regression")
    text = mp.SMALL_MIAR + 'data { path: "data.h5" }\n' + training("max_steps: 1")
    mp.write_config(home / "mine.txtpb", text)
    mp.muster("train", "../home/mine.txtpb", cwd=elsewhere)
    first = mp.read_json(elsewhere / "runs/mine/environment.json")["data"]["sha256"]
    data.rename(tmp_path / "other.h5")
    second = mp.train(tmp_path, text.replace("data.h5", "other.h5"), "again")
    expected = hashlib.sha256((tmp_path / "other.h5").read_bytes()).hexdigest()
    assert first == mp.read_json(second / "environment.json")["data"]["sha256"] == expected


HUGE = "optimizer { learning_rate: 1e18 }\n"


@pytest.mark.parametrize("ranks", [1, 2])
def test_non_finite_training_stops(ranks, tmp_path):
    config = mp.write_config(tmp_path / "huge.txtpb", MIAR + HUGE + training("epochs: 3"))
    error = mp.muster("train", config, "--run-dir", tmp_path / "run", ranks=ranks, code=70).stderr
    step = int(re.search(r"non-finite at step (\d+) \(epoch \d\): loss ", error)[1])
    assert step == len(mp.metrics_rows(tmp_path / "run", "train")) + 1
    assert error.count("muster: ") == 1 and "rank 0: regression" in error and "samples video" in error
    assert ("rank 1: regression" in error) == (ranks == 2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_skipping_non_finite_steps(ranks, tmp_path):
    values = {m: [np.full((2, 3), 1.0 + i) for i in range(24)] for m in ("text", "audio")}
    values["audio"][8] = np.full((2, 3), 3e38)  # finite in the file, not in the model
    mp.tiny_data(tmp_path / "data.h5", "regression", dims={"text": 3, "audio": 3}, values=values)
    text = mp.SMALL_MIAR + 'data { path: "data.h5" }\n'
    fields = "epochs: 2 non_finite: SKIP_STEP sampling: SEQUENTIAL"
    run = mp.train(tmp_path, text + training(fields).replace("batch_size: 8", "batch_size: 4"), "run", ranks)
    rows = mp.metrics_rows(run, "skipped")
    assert mp.result(run)["skipped_steps"] == len(rows) == 2 and len(mp.metrics_rows(run, "train")) == 6
    assert all("utterance_8" in row["found"] for row in rows) and math.isfinite(mp.result(run)["test"]["loss"])
    config = mp.write_config(tmp_path / "always.txtpb", MIAR + HUGE + training("epochs: 9 non_finite: SKIP_STEP max_skipped_in_a_row: 3"))
    error = mp.muster("train", config, "--run-dir", tmp_path / "always", ranks=ranks, code=70).stderr
    assert "4 steps in a row were skipped" in error and "samples video" in error and error.count("muster: ") == 1


def test_quickstart_learns(tmp_path):
    mp.muster("train", mp.ROOT / "experiments/quickstart.txtpb", "--run-dir", tmp_path / "run", "--set", "training.threads=1")
    result = mp.result(tmp_path / "run")
    assert result["test"]["metrics"]["WA"] > result["trivial_baselines"]["test"]["WA"] + 0.2
    assert result["test"]["metrics"]["UA"] > result["trivial_baselines"]["test"]["UA"] + 0.25
