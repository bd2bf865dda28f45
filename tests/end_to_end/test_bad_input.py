"""Wrong configs and broken data: the right exit code, one message that says where and what would be right, and nothing on disk."""
import os

import h5py
import numpy as np
import pytest

import muster_program as mp

FOAL, MIAR = mp.SMALL_FOAL_NET, mp.SMALL_MIAR
SHORT = "training { max_steps: 2 threads: 1 batch_size: 6 }\n"
DATA = 'data { path: "data.h5" }\n'
LEAVE_OUT = 'data { path: "data.h5" split { kind: LEAVE_ONE_GROUP_OUT test_group: "g9" } }\n'


def messages(error):
    """The job's message without mpirun's own notice about the exit code and the program's progress."""
    kept, notice = [], False
    for line in error.splitlines():
        if line.startswith("-----"):
            notice = not notice
        elif not notice and not line.startswith("reading ") and line.strip():
            kept.append(line)
    return "\n".join(kept)


def check_refused(folder, config, ranks, code, parts, *arguments):
    """Exactly one message with these parts; no run directory, hidden or not."""
    before = sorted(path.name for path in folder.iterdir())
    result = mp.muster("train", config, "--run-dir", folder / "run", *arguments, ranks=ranks, cwd=folder, code=code)
    message = messages(result.stderr)
    assert message.startswith("muster: ") and message.count("muster: ") == 1, result.stderr
    for part in parts:
        assert message.count(part) == 1, f"{part!r} should be there once:\n{message}"
    assert "internal error" not in message and result.stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == before


# Every case runs on one rank. On two, where one message must come out of two ranks that fail alike, a case of each kind does: what the parser, the
# checks of values, those beside the data and the reader of files find, early and late; with MUSTER_FULL_TESTS=1 every case does.
ON_TWO_RANKS = {"unknown-key", "unknown-modality", "batch-0", "unknown-group", "misfits", "too-few-samples",
                "nan-feature", "nan-label", "duplicate-id", "offsets-too-far", "class-not-in-training", "lacks-modality", "truncated", "absent"}


def both(*cases):
    full = os.environ.get("MUSTER_FULL_TESTS") == "1"
    return pytest.mark.parametrize("case,ranks", [pytest.param(case, ranks, id=f"{case[0]}-{ranks}") for case in cases for ranks in (1, 2)
                                                  if ranks == 1 or full or case[0] in ON_TWO_RANKS])


# name, experiment (its first line is line 3 of the file), parts of the message. The data is a classification, unless the name says so.
@both(
    ("unknown-key", FOAL + DATA + "training { batchsize: 8 }\n", ["experiment.txtpb:5: ", "batchsize", "batch_size"]),
    ("wrong-type", FOAL + DATA + 'training { batch_size: "many" }\n', ["experiment.txtpb:5: "]),
    ("unknown-enum", FOAL + DATA + "optimizer { schedule: COSIN }\n", ["experiment.txtpb:5: ", "COSIN;", "CONSTANT, COSINE, STEP"]),
    ("syntax", FOAL + DATA + "training { batch_size: 8 \n", ["experiment.txtpb:5: ", "never closed"]),
    ("unknown-modality", FOAL + 'data { path: "data.h5" modalities: "audio" modalities: "video" }\n' + SHORT,
     ["experiment.txtpb:4: ", 'no modality "video"', '"audio", "vision"']),
    ("class-count", FOAL.replace("}", "classes: 5 }") + DATA + SHORT, ["experiment.txtpb:3: ", "foal_net.classes: it is 5", "3 classes"]),
    ("batch-0", FOAL + DATA + "training { batch_size: 0 }\n", ["experiment.txtpb:5: ", "training.batch_size"]),
    ("negative-rate", FOAL + DATA + "optimizer { learning_rate: -0.1 }\n", ["experiment.txtpb:5: ", "optimizer.learning_rate"]),
    ("foal-net-on-regression", FOAL + DATA + SHORT, ["experiment.txtpb:3: ", "is for regression; use miar"]),
    ("unknown-group", FOAL + LEAVE_OUT + SHORT, ["experiment.txtpb:4: ", "data.split.test_group", "no group", "g0, g1, g2"]),
    ("two-models", FOAL + MIAR + DATA, ["foal_net (", "are both given"]),
    ("no-data", FOAL + SHORT, ["no data: give data.path"]),
    ("unknown-metric", FOAL + DATA + 'evaluation { select_by: "MAE" }\n', ["experiment.txtpb:5: ", "evaluation.select_by", "macro_recall"]),
    ("heads", FOAL.replace("}", "heads: 3 }") + DATA + SHORT, ["experiment.txtpb:3: ", "foal_net.heads", "8 and 4"]),
    ("misfits", FOAL.replace("}", "classes: 5 heads: 3 }") + 'data { path: "data.h5" modalities: "audio" modalities: "video" }\n' + SHORT,
     ["data.h5: 3 problems:", "experiment.txtpb:4: data.modalities: ", "experiment.txtpb:3: foal_net.classes: it is 5",
      "experiment.txtpb:3: foal_net.heads: 3 heads cannot share features of width 8 (audio)"]),
    ("misfits-of-a-regression", MIAR + 'data { path: "data.h5" modalities: "text" modalities: "face" }\ntraining { sampling: CLASS_BALANCED }\n'
     'evaluation { select_by: "WA" }\n',
     ["data.h5: 3 problems:", "experiment.txtpb:4: data.modalities: ", "experiment.txtpb:5: training.sampling: CLASS_BALANCED",
      'experiment.txtpb:6: evaluation.select_by: "WA"']),
    ("foal-net-and-metric-on-regression", FOAL + DATA + 'evaluation { select_by: "UA" }\n',
     ["data.h5: 2 problems:", "experiment.txtpb:3: foal_net: it classifies", 'experiment.txtpb:5: evaluation.select_by: "UA"']),
    ("too-few-samples", FOAL + DATA + "training { batch_size: 100 drop_last: true }\n", ["experiment.txtpb:5: ", "leaves no batch"]),
)
def test_wrong_config(case, ranks, tmp_path):
    name, text, parts = case
    mp.tiny_data(tmp_path / "data.h5", "regression" if "regression" in name else "classification")
    config = mp.write_config(tmp_path / "experiment.txtpb", text)
    check_refused(tmp_path, config, ranks, 78, parts)


def test_all_problems_at_once(tmp_path):
    mp.tiny_data(tmp_path / "data.h5")
    text = FOAL.replace("layers", "layer") + DATA + "training { batch_size: 0 epoch: 3 }\noptimizer { learning_rate: -1 schedule: WAVE }\n"
    error = mp.muster("train", mp.write_config(tmp_path / "experiment.txtpb", text), cwd=tmp_path, code=78).stderr
    assert "5 problems" in error
    assert all(error.count(f"experiment.txtpb:{line}: ") == count for line, count in ((3, 1), (5, 2), (6, 2)))


@pytest.mark.parametrize("ranks", [1, 2])
def test_unreadable_config_and_bad_override(ranks, tmp_path):
    check_refused(tmp_path, tmp_path / "absent.txtpb", ranks, 78, ["absent.txtpb"])
    check_refused(tmp_path, tmp_path, ranks, 78, [])
    config = mp.write_config(tmp_path / "experiment.txtpb", FOAL + mp.CLASSIFICATION)
    check_refused(tmp_path, config, ranks, 78, ["--set optimizer.lerning_rate=1: ", "did you mean optimizer.learning_rate?"], "--set", "optimizer.lerning_rate=1")


@pytest.mark.parametrize("ranks", [1, 2])
def test_usage(ranks, tmp_path):
    for words in (["train"], ["trian", "x"], ["train", "x", "--epochs", "3"], []):
        error = messages(mp.muster(*words, ranks=ranks, cwd=tmp_path, code=2).stderr)
        assert error.count("muster: ") == 1 and "See: muster --help" in error


@pytest.mark.parametrize("ranks", [1, 2])
def test_run_directory_below_a_file(ranks, tmp_path):
    """Stands for any folder that cannot be written; root may write where permissions forbid it."""
    (tmp_path / "file").write_text("mine")
    config = mp.write_config(tmp_path / "experiment.txtpb", FOAL + mp.CLASSIFICATION + SHORT)
    result = mp.muster("train", config, "--run-dir", tmp_path / "file" / "run", ranks=ranks, code=74)
    assert result.stderr.count("muster: ") == 1 and "file" in messages(result.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.txtpb", "file"] and (tmp_path / "file").read_text() == "mine"


def write(name, value):
    def change(file):
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = value
        file[name].attrs.update(attributes)
    return change


def alter(name, index, value):
    def change(file):
        file[name][index] = value
    return change


def remove(name):
    def change(file):
        del file[name]
    return change


def attribute(name, value):
    def change(file):
        file.attrs[name] = value
    return change


# name, task, change of a good file, parts of the message
@both(
    ("nan-feature", "classification", alter("modalities/audio/values", (7, 3), np.nan), ["audio", "utterance_"]),
    ("infinite-feature", "regression", alter("modalities/text/values", (0, 0), np.inf), ["text", "utterance_0"]),
    ("nan-label", "regression", alter("samples/label", 4, np.nan), ["/samples/label", "utterance_4", "NaN"]),
    ("label-out-of-range", "classification", alter("samples/label", 5, 3), ["/samples/label", "utterance_5", "3 classes"]),
    ("duplicate-id", "classification", alter("samples/id", 9, "utterance_2"), ["'utterance_2' occurs twice, in rows 2 and 9"]),
    ("offsets-backwards", "classification", alter("modalities/vision/offsets", 3, 0), ["/modalities/vision/offsets", "backwards", "utterance_2"]),
    ("offsets-too-far", "classification", alter("modalities/vision/offsets", 24, 10 ** 12), ["/modalities/vision/offsets", "utterance_23"]),
    ("labels-missing", "classification", remove("samples/label"), ["/samples/label: is missing"]),
    ("ids-missing", "classification", remove("samples/id"), ["/samples/id"]),
    ("class-not-in-training", "classification", write("samples/label", np.array([0] * 4 + [1, 2] + [0] * 18)), ["'glad', 'sad'"]),
    ("unknown-split", "classification", alter("samples/split", 1, "dev"), ["/samples/split", "utterance_1", "'dev'"]),
    ("integer-features", "classification", write("modalities/audio/values", np.zeros((70, 8), dtype=np.int32)), ["/modalities/audio/values", "float32"]),
    ("other-format", "classification", attribute("format", "something"), ["'something', not 'muster-dataset'"]),
    ("later-version", "classification", attribute("version", 2), ["version 2"]),
    ("short-labels", "regression", write("samples/label", np.zeros(5, dtype=np.float32)), ["/samples/label: has 5 entries", "24 samples"]),
    ("lacks-modality", "classification", None, ["utterance_3, utterance_8", "data.missing_modality: DROP"]),
    ("truncated", "classification", None, []),
    ("not-hdf5", "classification", None, []),
    ("absent", "classification", None, []),
)
def test_broken_data(case, ranks, tmp_path):
    name, task, change, parts = case
    path = tmp_path / "data.h5"
    lengths = {m: [0 if i in (3, 8) and m == "audio" else 3 for i in range(24)] for m in ("audio", "vision")} if name == "lacks-modality" else None
    mp.tiny_data(path, task, lengths=lengths)
    if change:
        with h5py.File(path, "a") as file:
            change(file)
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-3000])
    if name == "not-hdf5":
        path.write_bytes(b"id,label\n" * 100)
    if name == "absent":
        path.unlink()
    text = (FOAL if task == "classification" else MIAR) + DATA + SHORT
    check_refused(tmp_path, mp.write_config(tmp_path / "experiment.txtpb", text), ranks, 74 if name == "absent" else 65, [str(path), *parts])


@pytest.mark.parametrize("ranks", [1, 2])
def test_empty_training_set(ranks, tmp_path):
    mp.tiny_data(tmp_path / "data.h5", splits=["valid", "test"] * 12)
    config = mp.write_config(tmp_path / "experiment.txtpb", FOAL + DATA + SHORT)
    check_refused(tmp_path, config, ranks, 78, ["the training set is empty"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_samples_without_a_modality_are_dropped(ranks, tmp_path):
    lengths = {"audio": [0 if i in (3, 8) else 3 for i in range(24)], "vision": [0 if i == 5 else 2 for i in range(24)]}
    mp.tiny_data(tmp_path / "data.h5", lengths=lengths)
    text = FOAL + DATA.replace("}", "missing_modality: DROP }") + SHORT
    config = mp.write_config(tmp_path / "experiment.txtpb", text)
    result = mp.muster("train", config, "--run-dir", tmp_path / "run", ranks=ranks)
    assert "3 dropped" in result.stderr and "3 of all samples were left out" in result.stdout
    counts = mp.read_json(tmp_path / "run/environment.json")["data"]
    assert (counts["dropped"], counts["train"], counts["valid"], counts["test"]) == (3, 14, 4, 3)
    assert "utterance_5" not in [row["id"] for row in mp.predictions(tmp_path / "run/predictions-test.csv")]


@pytest.mark.parametrize("text", [FOAL + mp.CLASSIFICATION, MIAR + mp.REGRESSION], ids=["foal_net", "miar"])
def test_batches_of_one_sample(text, tmp_path):
    one = "training { batch_size: 1 max_steps: 6 threads: 1 log_every_steps: 1 } evaluation { batch_size: 1 }\n"
    for ranks in (1, 2):
        run = mp.train(tmp_path, text + one, f"ranks{ranks}", ranks)
        losses = [row["loss"] for row in mp.metrics_rows(run, "train")]
        assert len(losses) == 6 and None not in losses and mp.result(run)["test"]["loss"] is not None
